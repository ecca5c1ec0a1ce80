# make demo: own virtual environment, install, train on the built-in synthetic clips, show the table.
# make demo-mmnet: the same with a small MMNet, which looks at the faces themselves.
# make demo-attributes: clips of frames and flow, and action units as text, which another extra reads.
# make test: the same environment with the test extras, then pytest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo demo-mmnet demo-attributes test test-slow lint format clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) --editable .[test,torch,text,landmarks,tensorboard]
	touch $@

$(VENV)/.installed-text: $(VENV)/.installed
	$(PIP) --editable .[text]
	touch $@

demo: $(VENV)/.installed
	rm -rf runs/demo
	$(BIN)/python -m htnet_jax.train --config=configs/demo.py --workdir=runs/demo \
		--config.dataset.data_dir=runs/data
	@echo "Open runs/demo/report.html in a browser."

demo-mmnet: $(VENV)/.installed
	rm -rf runs/demo_mmnet
	$(BIN)/python -m htnet_jax.train --config=configs/demo_mmnet.py --workdir=runs/demo_mmnet \
		--config.dataset.data_dir=runs/data
	@echo "Open runs/demo_mmnet/report.html in a browser."

demo-attributes: $(VENV)/.installed-text
	rm -rf runs/demo_attributes
	$(BIN)/python -m htnet_jax.train --config=configs/demo_attributes.py \
		--workdir=runs/demo_attributes --config.dataset.data_dir=runs/data
	@echo "Open runs/demo_attributes/report.html in a browser."

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile

test-slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) runs
