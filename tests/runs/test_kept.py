"""What --keep takes."""

import pytest

from icl_bench.errors import SpecError
from icl_bench.runs.kept import KEPT_FILES, lacking, parse_keep


def test_names_of_what_is_kept() -> None:
    assert parse_keep("model") == ("model",) and parse_keep("probes,samples, model,model") == tuple(KEPT_FILES)
    for wrong in ("", "models", "model,", "model samples"):
        with pytest.raises(
            SpecError, match=r"--keep takes model, samples, probes; got .*; .*write --keep model,samples"
        ):
            parse_keep(wrong)


def test_a_run_lacks_what_its_result_does_not_name() -> None:
    assert lacking({"spec.json": "", "model.safetensors": ""}, ("model", "samples")) == ["samples"]
