# The two commands of the README. Each makes its own environment from nothing but python3 and make.
#   make demo    the whole story on a simulated arm        make test    all that CI runs
#   make wheel   what pip installs, in dist/          make lock   renews the versions that both install (.ci/constraints-*)
# Variables: PYTHON (default: python3, or another supported one), TORCH (what pip installs first), ARGS (passed on to
# pytest / the demo), MUTANTS (how many small errors `make safety` puts into the safety core).

PYTHON ?= $(shell sh .ci/find-python)
TORCH  ?= torch==2.13.0
ARGS   ?=
MUTANTS ?= 150
OPENPI      := openpi-client==0.1.2 typing_extensions
LEROBOT     := lerobot[dataset,diffusion,pi,smolvla,xvla]==0.6.1
LOCKS       := $(wildcard .ci/constraints-*.txt)
VENV        := .venv
VENV_TEST   := .venv-test
RUNTIME_PYTHONS := 3.10 3.13
RUNTIME_TESTS   := tests/core tests/dataset tests/robots tests/runtime tests/launch tests/monitor tests/demo \
                   tests/evaluation tests/trials tests/serve tests/flight tests/view
PROCESS_TESTS   := tests/runtime/test_record.py tests/robots/test_vendor_sdks.py

# 64-bit ARM, emulated: all tests of the robot's half but of the project's own pages and packaging, and of them what CI runs. The
# wheel is tested, not the tree: Python must not look into the folder that it is started in.
ARM            := build/arm64
ARM_RUN        := PYTHONPATH= PYTHONSAFEPATH=1 OMP_NUM_THREADS=1 $(ARM)/venv/bin/python
ARM_TESTS      := tests/core tests/robots tests/runtime tests/monitor tests/dataset \
                  $(patsubst %,--ignore=tests/%.py,core/test_packaging core/test_citations core/test_docs core/test_stands_alone \
                  robots/test_adapters)
ARM_PART_TESTS := $(patsubst %,tests/core/test_%.py,bundle runner strict prompt) \
                  $(patsubst %,tests/runtime/test_%.py,wire safety execution) \
                  $(patsubst %,tests/robots/test_%.py,codecs protocols emulated_servos units profile calibration)

NOT_RUN := .not-run

.PHONY: demo test wheel lock lint types test-torch safety test-runtime drawing programs test-arm test-arm-part arm-part arm-runs \
        test-lerobot test-openpi clean

demo: $(VENV)/ready
	$(VENV)/bin/edgevla demo $(ARGS)

# In an environment of its own, so that it needs nothing but python3; the links inside edgevla/ become folders.
wheel:
	sh .ci/venv $(PYTHON) build/venv-wheel
	build/venv-wheel/bin/pip wheel --quiet --no-deps --wheel-dir dist .
	@ls dist/edgevla-*.whl

# Newest versions: make lock ARGS=--upgrade
lock:
	TORCH='$(TORCH)' sh .ci/lock $(ARGS)

# What this machine could not run is said at the end, and is no success of that part.
test: lint types test-torch safety test-runtime drawing programs test-arm-part
	@if [ -s $(NOT_RUN) ]; then echo "Passed, but NOT RUN here:"; cat $(NOT_RUN); else echo "All was run, and passed."; fi

lint: $(VENV_TEST)/ready
	$(VENV_TEST)/bin/ruff check .
	$(VENV_TEST)/bin/ruff format --check .

types: $(VENV_TEST)/ready
	$(VENV_TEST)/bin/mypy
	$(VENV_TEST)/bin/mypy examples/*.py

# One thread per worker: two workers on two cores, no oversubscription. Tests with real deadlines run after them, alone. What
# fails is run once more and listed as RERUN: on a shared machine a neighbour may have taken the core.
test-torch: $(VENV_TEST)/ready
	OMP_NUM_THREADS=1 $(VENV_TEST)/bin/pytest -n 2 --dist loadfile -m "not realtime and not hardware" --reruns 1 -rR $(ARGS)
	OMP_NUM_THREADS=1 $(VENV_TEST)/bin/pytest -m realtime --reruns 1 -rR $(ARGS) $(if $(ARGS),|| test $$? = 5)

# The safety core: every branch is tested, and of small errors put into it a fixed sample is noticed. All of them, by hand:
# .venv-test/bin/python benchmarks/mutate.py --all
safety: $(VENV_TEST)/ready
	OMP_NUM_THREADS=1 $(VENV_TEST)/bin/python benchmarks/mutate.py --record
	$(VENV_TEST)/bin/coverage report
	OMP_NUM_THREADS=1 $(VENV_TEST)/bin/python benchmarks/mutate.py --sample $(MUTANTS) --seed 1

# The robot's half on the oldest and newest Python, in environments that hold no torch; of the real processes with deadlines,
# which all run beside torch, a part on the oldest: they cost many minutes.
test-runtime:
	@rm -f $(NOT_RUN)
	@$(MAKE) --no-print-directory $(RUNTIME_PYTHONS:%=test-runtime-%)

# A Python that is neither here nor to be had is written down.
test-runtime-%: $(VENV_TEST)/ready
	@if sh .ci/find-python $* >/dev/null; then $(MAKE) --no-print-directory runtime-$*; \
	else echo "  the runtime's tests on Python $*" | tee -a $(NOT_RUN); fi

runtime-%: .venv-runtime-%/ready
	.venv-runtime-$*/bin/pytest -n 2 --dist loadfile -m "not realtime" --reruns 1 -rR $(RUNTIME_TESTS) $(ARGS)
	$(if $(filter $*,$(firstword $(RUNTIME_PYTHONS))),.venv-runtime-$*/bin/pytest -m realtime --reruns 1 -rR $(PROCESS_TESTS) $(ARGS) $(if $(ARGS),|| test $$? = 5))

# Tests that draw simulated physics skip themselves where OpenGL is missing; that is written down as well.
drawing: $(VENV_TEST)/ready
	@$(VENV_TEST)/bin/python -c "from edgevla.robots.world.physics.gl import find_platform; find_platform()" 2>/dev/null || \
	echo "  the tests that draw simulated physics (apt-get install libegl1 libgl1-mesa-dri)" | tee -a $(NOT_RUN)

# So do the tests of `edgevla push`, which copy to this machine itself, without an ssh server, and some of GStreamer's.
programs:
	@PATH="$$PATH:/usr/sbin" command -v sshd >/dev/null || \
	echo "  the tests of edgevla push (apt-get install openssh-server)" | tee -a $(NOT_RUN)
	@command -v gst-launch-1.0 >/dev/null || \
	echo "  real GStreamer pipelines (apt-get install gstreamer1.0-tools gstreamer1.0-plugins-base)" | tee -a $(NOT_RUN)

# The wheel on 64-bit ARM, emulated (.ci/arm-python): what every policy computes there, beside what it computes here, and tests.
# By hand: all of it. Where the emulator is not to be had that is written down; what fails in it is a failure.
test-arm: arm-runs
	$(ARM_RUN) -m pytest -n 2 --dist loadfile -m "not realtime and not hardware" --reruns 1 -rR $(ARM_TESTS) $(ARGS)

test-arm-part:
	@if sh .ci/arm-python $(ARM); then $(MAKE) --no-print-directory arm-part; \
	else echo "  the runtime on 64-bit ARM (apt-get and Debian's mirror bring the emulator)" | tee -a $(NOT_RUN); fi

arm-part: arm-runs
	$(ARM_RUN) -m pytest -n 2 --dist loadfile -m "not realtime" --reruns 1 -rR $(ARM_PART_TESTS) $(ARGS)

arm-runs: $(VENV_TEST)/ready $(ARM)/ready wheel
	sh .ci/arm-install $(ARM) --no-deps "$$(ls -t dist/edgevla-*.whl | head -1)"
	rm -rf $(ARM)/runs
	OMP_NUM_THREADS=1 $(VENV_TEST)/bin/python -W ignore benchmarks/arm_runs.py write $(ARM)/runs
	$(ARM_RUN) benchmarks/arm_runs.py read $(ARM)/runs

$(ARM)/ready: pyproject.toml .ci/arm-python .ci/arm-install | wheel
	sh .ci/arm-python $(ARM)
	sh .ci/arm-install $(ARM) "$$(ls -t dist/edgevla-*.whl | head -1)[dev-runtime]"
	touch $@

# By hand: LeRobot itself opens what we write. It wants Python 3.12 and 3 GB of torch, in an environment of its own.
test-lerobot: $(VENV_TEST)/ready .venv-lerobot/ready
	$(VENV_TEST)/bin/python benchmarks/lerobot_reads_ours.py write .lerobot
	HF_HUB_OFFLINE=1 .venv-lerobot/bin/python benchmarks/lerobot_reads_ours.py read .lerobot

.venv-lerobot/ready:
	sh .ci/venv "$$(sh .ci/find-python 3.12)" .venv-lerobot
	sh .ci/install .venv-lerobot '$(LEROBOT)'
	touch $@

# By hand: openpi's published client against both of our sides. It wants NumPy 1, in an environment of its own.
test-openpi: $(VENV_TEST)/ready .venv-openpi/ready
	$(VENV_TEST)/bin/python benchmarks/openpi_speakers.py .venv-openpi/bin/python

.venv-openpi/ready:
	sh .ci/venv "$$(sh .ci/find-python 3.11)" .venv-openpi
	sh .ci/install .venv-openpi $(OPENPI)
	touch $@

$(VENV)/ready: pyproject.toml $(LOCKS)
	sh .ci/venv $(PYTHON) $(VENV)
	sh .ci/install --locked $(VENV) $(TORCH)
	sh .ci/install --locked $(VENV) -e '.[cpu,train]'
	touch $@

$(VENV_TEST)/ready: pyproject.toml $(LOCKS)
	sh .ci/venv $(PYTHON) $(VENV_TEST)
	sh .ci/install --locked $(VENV_TEST) $(TORCH)
	sh .ci/install --locked $(VENV_TEST) -e '.[dev]'
	touch $@

# The wheel, not the tree: what a robot would install.
.venv-runtime-%/ready: pyproject.toml $(LOCKS)
	sh .ci/venv "$$(sh .ci/find-python $*)" .venv-runtime-$*
	sh .ci/install --locked .venv-runtime-$* -e '.[dev-runtime]'
	touch $@

clean:
	rm -rf .venv .venv-test .venv-runtime-* .venv-lerobot .venv-openpi .lerobot .safety .not-run build dist
