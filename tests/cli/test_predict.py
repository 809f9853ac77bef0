"""What `illama predict` prints for people."""

from __future__ import annotations

from illama.cli.predict import as_csv, line
from illama.evaluation import Prediction


def test_imagenets_ids_are_printed_with_a_name_and_kept_for_machines() -> None:
    found = Prediction("a.jpg", ("n01440764", "cats"), (0.75, 0.25))
    assert line(found) == "a.jpg: n01440764 tench 75.0 %, cats 25.0 %"
    assert as_csv([found]).splitlines()[1] == "a.jpg,1,n01440764,0.75,"
    assert found.to_dict()["predictions"][0]["class"] == "n01440764"
