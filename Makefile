# `make demo`, `make tour` and `make test` need Python 3.11 or newer with venv, and the network the first time only.
PYTHON ?= python3
# The versions that were tested; `make test CONSTRAINTS=` takes the newest that setup.cfg allows.
CONSTRAINTS ?= constraints.txt
BIN := .venv/bin

.PHONY: demo tour test clean

# Half a pass over the embedded corpus: about three minutes on two cores. The folder is the demo's own, so it
# may start anew.
demo: .venv/demo
	rm -rf runs/demo
	$(BIN)/python train.py --batch 32 --epochs 0.5 --out runs/demo $(ARGS)

# Runs docs/tour.py cell by cell and stores it, with its outputs, as docs/tour.ipynb.
tour: .venv/tour
	$(BIN)/python docs/make_tour.py

# In two processes, a test file at a time: the tensors of most tests are tiny, and one thread is all they use.
test: .venv/test
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(ARGS)

# One stamp for each set of extras: what has not changed is not installed twice. The sets of the tour and of
# the tests include the demo's.
.venv/demo: EXTRAS := plots
.venv/tour: EXTRAS := tour
.venv/test: EXTRAS := parity,plots,test
.venv/demo .venv/tour .venv/test: setup.cfg pyproject.toml constraints.txt
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(addprefix -c ,$(CONSTRAINTS)) -e '.[$(EXTRAS)]'
	touch .venv/demo $@

clean:
	rm -rf .venv *.egg-info .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
