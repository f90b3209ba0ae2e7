# Two commands do everything on a fresh machine:
#   make study    virtual environment, pinned install, quickstart study, report
#   make test     the same with the test extra, then lint, types and all tests

VENV := .venv
# The first interpreter that runs and has a supported version; a shim that exists but does not start is passed over.
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))
PYTHON ?= $(shell for candidate in python3.11 python3.12 python3; do \
	if $$candidate -c '$(SUPPORTED)' >/dev/null 2>&1; then echo $$candidate; break; fi; done)
STUDY ?= quickstart
# The tabletop comes with the core; other studies use every simulator.
EXTRA := $(if $(filter quickstart smoke,$(STUDY)),,-all)
OUT ?= runs/$(STUDY)
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check
# What decides about the installed packages: a change of either installs again.
PINS := pyproject.toml constraints.txt
# MuJoCo draws without a window through one of these; macOS brings its own.
define GL_CHECK
import ctypes, sys
def loads(name):
    try:
        return bool(ctypes.CDLL(name))
    except OSError:
        return False
sys.exit(not (sys.platform == "darwin" or any(map(loads, ("libEGL.so.1", "libOSMesa.so.8", "libOSMesa.so.6")))))
endef
export GL_CHECK

.PHONY: help study test docs clean gl

help:
	@echo "make study   set up $(VENV) and run the $(STUDY) study into $(OUT)"
	@echo "make test    set up $(VENV) with the test extra, then lint, types and all tests"
	@echo "make docs    build the documentation into site/"
	@echo "make clean   remove $(VENV) and the caches (runs/ is kept)"
	@echo "choose another interpreter with PYTHON=..., another study with STUDY=smoke|quickstart|standard|calvin|paper"

study: $(VENV)/.installed$(EXTRA)
	@echo "==> running the $(STUDY) study into $(OUT) (stop it at any time; the same command goes on where it stopped)"
	$(VENV)/bin/latentgym study $(STUDY) -o $(OUT)

test: $(VENV)/.installed-test
	@echo "==> lint"
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	@echo "==> types"
	$(VENV)/bin/mypy
	@echo "==> tests"
	$(VENV)/bin/pytest -n auto --dist loadfile

docs: $(VENV)/.installed-test
	@echo "==> building the documentation into site/"
	$(VENV)/bin/mkdocs build --strict

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis site build dist

# Prerequisites after the bar are checked or made first, but are never a reason to install again.
$(VENV)/.installed: $(PINS) | $(VENV)/.created gl
	@echo "==> installing latentgym with the pins of constraints.txt (the first time this takes minutes)"
	$(PIP) install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-all: $(PINS) | $(VENV)/.created gl
	@echo "==> installing latentgym[all] with the pins of constraints.txt (the first time this takes minutes)"
	$(PIP) install --quiet --constraint constraints.txt --editable '.[all]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-test: $(PINS) | $(VENV)/.created gl
	@echo "==> installing latentgym[test] with the pins of constraints.txt (the first time this takes minutes)"
	$(PIP) install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@ $(VENV)/.installed $(VENV)/.installed-all

$(VENV)/.created:
	@$(if $(PYTHON),$(PYTHON),false) -c '$(SUPPORTED)' 2>/dev/null || { \
		echo "error: latentgym needs Python 3.11 or 3.12;$(if $(PYTHON), $(PYTHON) is neither., none of python3.11 python3.12 python3 is one.)" >&2; \
		echo "       Install one, or name it: make study PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "==> creating the virtual environment $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); \
		echo "error: $(PYTHON) could not create $(VENV); on Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@touch $@

gl: | $(VENV)/.created
	@$(VENV)/bin/python -c "$$GL_CHECK" || { \
		echo "error: neither EGL nor OSMesa can be loaded, and without one of them MuJoCo cannot draw." >&2; \
		echo "       On Debian or Ubuntu: apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri libosmesa6" >&2; exit 1; }
