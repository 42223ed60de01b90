# make demo: the simulated robot and the policy node, end to end. make test: build and all tests.
VENV ?= .venv
SHELL := /bin/bash
BIN := $(abspath $(VENV))/bin
SOURCES := setup.py pyproject.toml scripts/install.sh scripts/without-ros-requirements.txt \
           $(wildcard msg/*.msg) $(shell find embedded_ros -name '*.py' -o -name '*.toml' 2>/dev/null)
# With ROS 2 sourced, its own colcon and ros2 are used; else those of the virtual environment.
ENTER := export PATH="$(BIN):$$PATH" MUJOCO_GL="$${MUJOCO_GL:-osmesa}";

# A process a core; what a test file shares is made once, and nodes on DDS take turns. In the order of
# test/conftest.py: long ones first.
PARALLEL ?= -n auto --no-loadscope-reorder

.PHONY: help install demo test test-slow bench lint clean
help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

install: $(VENV)/.installed ## install everything into .venv
$(VENV)/.installed: $(SOURCES)
	scripts/install.sh $(VENV)

demo: install ## simulated robot + policy node over DDS; ends by itself with a table and a GIF
	@$(ENTER) ros2 launch ros_pi0_fast demo.launch.xml $(ARGS)

test: install ## colcon build, colcon test, colcon test-result
	@$(ENTER) colcon build --base-paths . --event-handlers console_cohesion+
	@$(ENTER) . install/local_setup.sh && \
	  { colcon test --base-paths . --return-code-on-test-failure --event-handlers console_direct+ \
	    --pytest-args $(PARALLEL); rc=$$?; \
	    colcon test-result --verbose && exit $$rc; }

test-slow: install ## the tests that take minutes
	@$(ENTER) python -m pytest -m slow

bench: install ## variants of the engine against the reference: the shipped policy, then preset mid
	@$(ENTER) python -m ros_pi0_fast.evaluation.benchmark --preset tiny --observations 200 --runs 101 $(ARGS)
	@$(ENTER) python -m ros_pi0_fast.evaluation.benchmark --preset mid $(ARGS)

lint: install ## ruff
	@$(ENTER) ruff check .

clean: ## remove what build and test wrote
	rm -rf build install log out
