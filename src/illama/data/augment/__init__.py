"""What training does to images: one by one in workers, or in batches on the device."""
