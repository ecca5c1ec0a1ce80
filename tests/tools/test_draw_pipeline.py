import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).parents[2] / "tools" / "draw_pipeline.py"


def draw(*arguments):
    return subprocess.run(
        [sys.executable, str(TOOL), *arguments], capture_output=True, text=True, timeout=120
    )


def test_writes_a_png(tmp_path):
    output = tmp_path / "new" / "picture.png"
    result = draw(f"--output={output}")
    assert result.returncode == 0, result.stderr
    assert output.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_output_that_cannot_be_written_is_one_message(tmp_path):
    (tmp_path / "file").write_text("in the way")
    result = draw(f"--output={tmp_path / 'file' / 'picture.png'}")
    assert result.returncode == 2
    assert "cannot be written" in result.stderr
    assert "Traceback" not in result.stderr
