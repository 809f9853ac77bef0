"""illama"""
