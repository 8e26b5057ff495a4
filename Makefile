# `make demo`, `make tour` and `make test` need Python 3.11 or newer with venv, and the network once.
PYTHON ?= python3
# The versions that were tested; `make test CONSTRAINTS=` installs the newest versions that setup.cfg
# allows.
CONSTRAINTS ?= constraints.txt
BIN := .venv/bin

.PHONY: demo tour test gpu clean

# Trains for half a pass over Python's documentation, in a few minutes on two cores. The folder of an earlier
# demo is removed.
demo: .venv/demo
	rm -rf runs/demo
	$(BIN)/python train.py --batch 32 --epochs 0.5 --out runs/demo $(ARGS)

# Runs the cells of docs/tour.py and writes docs/tour.ipynb with their outputs.
tour: .venv/tour
	$(BIN)/python docs/make_tour.py

# Runs the tests in two processes, because most tests use one thread. Each process runs whole test files.
test: .venv/test
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(ARGS)

# Runs tests and measurements on one GPU, in ten to seventeen minutes (docs/gpu.md). Each part has a time
# limit. If a part fails or is stopped, make says so and runs the next part. After the signal INT, train.py
# writes a checkpoint.
STEP := $(BIN)/python bench.py train --turns 3 --device cuda
SIZE := $(STEP) --no-peer --batch 512 --min-length 128 --max-length 128 --steps 1 --micro-tokens
gpu: .venv/test
	-timeout -s INT 90 $(BIN)/python -m pytest -q -m gpu
	-timeout -s INT 150 $(STEP) --batch 32 --max-length 128 --steps 2 --compiled-peer
	-timeout -s INT 60 $(SIZE) 4096
	-timeout -s INT 60 $(SIZE) 8192
	-timeout -s INT 60 $(SIZE) 16384
	-timeout -s INT 60 $(SIZE) 32768
	-timeout -s INT 60 $(SIZE) 65536
	-timeout -s INT 120 $(BIN)/python bench.py inference --models bert-base --engines minibert 'minibert bf16' \
	    'transformers fp32' 'transformers bf16' 'transformers bf16 compiled' --examples 100 --batch 100 \
	    --device cuda --threads 8
	rm -rf runs/gpu
	-timeout -s INT 360 $(BIN)/python train.py --corpus python-docs --batch 256 --micro-tokens 16384 \
	    --steps 1000000 --warmup 0.0001 --checkpoint-every 1000000 --device cuda --out runs/gpu

# Each set of extras has a stamp, an empty file that shows that the set is installed. The sets of the tour and of
# the tests include the set of the demo.
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
