"""The command line: every verb has help, and bad input ends in one line, exit status 2 and no traceback."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from latentgym import record
from latentgym.cli import _run, app
from latentgym.trajectories import create_store, open_dataset

COMMAND = [sys.executable, "-c", "from latentgym.cli import main; main()"]


def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> tuple[int, str, str]:
    """Run one command in this process; returns exit status, standard output and standard error."""
    monkeypatch.setattr(sys, "argv", ["latentgym", *map(str, arguments)])
    status = _run()
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["record", "latentgym/TabletopReech-v0", "-o", "{tmp}"], "TabletopReach"),
        (["record", "latentgym/TabletopReach-v0", "-o", "{tmp}", "--policy", "exprt"], "expert"),
        (["record", "latentgym/TabletopReach-v0", "-o", "{tmp}", "--option", "distractor"], "key=value"),
        (["record", "latentgym/TabletopReach-v0", "-o", "{tmp}", "--option", "distracter=static"], "distracter"),
        (["record", "latentgym/TabletopReach-v0", "-o", "{tmp}/file"], "cannot write"),
        (["probe", "{tmp}/nothing", "--encoder", "pixels"], "nothing"),
        (["probe", "{tmp}/nothing", "--encoder", "pixels", "--cache", "{tmp}/file"], "/file is a file"),
        (["pretrain", "pixel_autoencoder", "{tmp}/nothing", "-o", "{tmp}/file"], "/file is a file"),
        (["adapt", "random", "{tmp}/nothing", "-o", "{tmp}/file/sub"], "/file is a file"),
        (["encode", "{tmp}/nothing", "--encoder", "pixels", "-o", "{tmp}/file"], "/file is a file"),
        (["study", "quickstart", "-o", "{tmp}/file"], "/file is a file"),
        (["study", "quickstart", "-o", "{tmp}/file/sub"], "/file is a file"),
        (["link", "{tmp}/nothing", "-o", "{tmp}"], "a folder is where the file is to go"),
        (["layers", "{tmp}/nothing", "--encoder", "pixels", "--plot", "{tmp}"], "a folder is where the file is to go"),
        (["train", "{tmp}/nothing", "--encoder", "state", "-o", "{tmp}"], "exists already"),
        (["study", "quickstrat", "-o", "{tmp}"], "did you mean 'quickstart'"),
        (["rollout", "latentgym/TabletopReach-v0", "--policy", "{tmp}/nothing"], "nothing"),
        (
            ["train-rl", "latentgym/TabletopReach-v0", "--encoder", "state", "-o", "{tmp}/out", "--algorithm", "sak"],
            "sac",
        ),
        (["rollout", "latentgym/TabletopReach-v0", "--policy", "expert", "--corruption", "snow"], "reads no frames"),
        (["rollout", "latentgym/TabletopReach-v0", "--policy", "expert", "--corruption", "snw"], "did you mean 'snow'"),
        (["train-rl", "latentgym/TabletopReach-v0", "--encoder", "state", "-o", "{tmp}"], "exists already"),
        (["pretrain", "pixel_autoencodr", "{tmp}/nothing", "-o", "{tmp}/out"], ""),
        (["check", "encoder", "pixles"], "did you mean 'pixels'"),
        (["layers", "{tmp}/nothing", "--encoder", "pixels"], "nothing"),
        (["robustness", "{tmp}/nothing", "--encoder", "pixels"], "nothing"),
        (["link", "{tmp}/nothing"], "nothing"),
        (["compare", "latentgym/TabletopReach-v0", "expert", "random", "--maximum", "3"], "declare more"),
        (["compare", "latentgym/TabletopReach-v0", "expert", "{tmp}/nothing"], "no policy"),
        (["claims", "{tmp}/nothing"], "nothing"),
        (["power", "--effect", "0"], "effect other than 0"),
        (["power", "--effect", "1e-9", "--paired"], "more than 10,000,000 episodes"),
        (["data", "check", "{tmp}/nothing"], "nothing"),
        (["report", "{tmp}/nothing"], "nothing"),
        (["nonsense"], "nonsense"),
    ],
)
def test_bad_input_is_one_clear_message(
    arguments: list[str],
    expected: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").touch()
    status, _, err = run(capsys, monkeypatch, *(item.format(tmp=tmp_path) for item in arguments))
    assert status == 2
    assert expected in err
    assert "Traceback" not in err


VERBS = sorted(item.name or item.callback.__name__ for item in app.registered_commands if item.callback)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    status, out, _ = run(capsys, monkeypatch, verb, "--help")
    assert status == 0
    assert "Usage" in out


def test_power_says_how_many_episodes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    status, out, _ = run(capsys, monkeypatch, "power", "--effect", 0.1)
    assert status == 0 and out.startswith("392 episodes per policy")
    paired = ["--rate", 0.5, "--power", 0.8, "--paired", "--correlation", 0.5, "--json"]
    plan = json.loads(run(capsys, monkeypatch, "power", "--effect", 0.1, *paired)[1])
    assert plan["episodes"] == 211 and plan["power"] >= 0.8 and plan["method"] == "exact"


def test_chains_refuse_what_they_do_not_take(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("rollout", "calvin-chains", "--policy", "expert", "--corruption", "snow", "--per-step")
    status, _, error = run(capsys, monkeypatch, *arguments)
    assert status == 2 and "calvin-chains does not take --corruption, --per-step" in error


def test_record_probe_train_rollout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, policy = tmp_path / "data", tmp_path / "policy"
    env = "latentgym/TabletopReach-v0"
    size = ["--episodes", 20, "--random-fraction", 0.5]
    assert run(capsys, monkeypatch, "record", env, "-o", data, *size)[0] == 0
    assert run(capsys, monkeypatch, "data", "check", data)[0] == 0
    arguments = ("probe", data, "--encoder", "pixel_pca", "--readout", "ridge", "--fidelity", "--json")
    status, out, _ = run(capsys, monkeypatch, *arguments)
    rows = json.loads(out)
    names = {row["encoder"] for row in rows}
    assert status == 0
    shares = {(row["encoder"], row["k"]): row for row in rows if row["metric"] == "action_r2_share_of_state"}
    assert {("random", 1), ("random", 4), ("proprio", 1)} <= set(shares) and 0.5 < shares["proprio", 1]["value"] < 1.5
    assert {row["encoder"] for row in rows if row["metric"] == "psnr_db"} == {"random", "pixels"}
    assert {row["metric"] for row in rows} >= {"state_r2", "description_length_bits_saved"}
    assert {"pixel_pca", "state", "random", "pixels", "proprio", "constant", "previous_action"} <= names
    profile = tmp_path / "profile.html"
    status, out, _ = run(capsys, monkeypatch, "layers", data, "--encoder", "pixels", "--plot", profile, "--json")
    assert status == 0 and profile.exists()
    assert "action_r2_best_layer" in {row["metric"] for row in json.loads(out)}
    status, out, _ = run(
        capsys, monkeypatch, "robustness", data, "--encoder", "pixels", "--condition", "blur_11", "--json"
    )
    assert status == 0
    assert {None, "blur_11", "shuffle", "reverse", "freeze"} == {row["condition"] for row in json.loads(out)}
    assert run(capsys, monkeypatch, "train", data, "--encoder", "state", "-o", policy, "--steps", 20)[0] == 0
    status, out, _ = run(capsys, monkeypatch, "rollout", env, "--policy", policy, "--episodes", 4, "--json")
    assert status == 0
    assert len(json.loads(out)["records"]) == 4
    arguments = ("rollout", env, "--policy", policy, "--episodes", 4, "--workers", 2, "--json")
    status, again, _ = run(capsys, monkeypatch, *arguments)
    assert status == 0
    assert json.loads(again)["records"] == json.loads(out)["records"]
    assert json.loads(again)["timing"]["workers"] == 2
    status, again, _ = run(capsys, monkeypatch, *arguments, "--per-step", "--software", "refuse")
    assert len(json.loads(again)["records"][0]["trace"]["reward"]) == json.loads(out)["records"][0]["steps"]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten short episodes."""
    folder = tmp_path_factory.mktemp("recorded") / "data"
    record("latentgym/TabletopReach-v0", folder, episodes=10, random_fraction=0.5, env_options={"horizon": 12})
    return folder


PROBE = ("--encoder", "pixels", "--readout", "ridge", "--horizon", 1, "--json")


@pytest.mark.parametrize("inputs", [["window"], ["window", "pair"], ["single"]])
def test_each_input_is_probed_with_the_floors_that_take_it(
    inputs: list[str], recorded: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [item for kind in inputs for item in ("--input", kind)]
    status, out, err = run(capsys, monkeypatch, "probe", recorded, *PROBE, *options)
    assert status == 0, err
    rows = [row for row in json.loads(out) if row["metric"] == "action_r2"]
    found = {name: {row["input"] for row in rows if row["encoder"] == name} for name in ("pixels", "random", "state")}
    assert found["pixels"] == found["state"] == {*inputs}
    assert found["random"] == {*inputs} - {"window"}
    assert ("leaving out random on input window" in err) == ("window" in inputs)


def test_data_without_cameras_are_probed_from_vectors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"horizon": 12, "pixels": False}
    record("latentgym/TabletopReach-v0", tmp_path / "d", episodes=10, random_fraction=0.5, env_options=options)
    arguments = ["--encoder", "state", "--readout", "ridge", "--horizon", 1, "--no-description-length", "--json"]
    status, out, err = run(capsys, monkeypatch, "probe", tmp_path / "d", *arguments)
    assert status == 0, err
    assert "leaving out pixels: the data were recorded without cameras" in err
    assert {row["encoder"] for row in json.loads(out)} == {"state", "proprio", "constant", "previous_action"}


def test_a_wrong_encoder_is_named_before_the_first_is_probed(
    recorded: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something was probed")

    monkeypatch.setattr("latentgym.probes.probe", refuse)
    monkeypatch.setattr("latentgym.probes.probe_floors", refuse)
    status, _, err = run(capsys, monkeypatch, "probe", recorded, "--encoder", "pixels", "--encoder", "nope")
    assert status == 2 and "nope" in err


@pytest.mark.parametrize(
    ("verb", "wrong", "words"),
    [("layers", "constant", "unknown encoder 'constant'"), ("robustness", "state", "reads no pixels to corrupt")],
)
def test_encoders_that_a_verb_cannot_take_are_named_first(
    verb: str, wrong: str, words: str, recorded: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something was probed")

    for name in ("probe_layers", "robustness"):
        monkeypatch.setattr(f"latentgym.probes.{name}", refuse)
    status, _, err = run(capsys, monkeypatch, verb, recorded, "--encoder", "pixels", "--encoder", wrong)
    assert status == 2 and words in err


def test_brackets_in_names_are_no_markup(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a[" / "b]"
    folder.parent.mkdir()
    folder.symlink_to(recorded)
    status, out, err = run(capsys, monkeypatch, "layers", folder, "--encoder", "pixels")
    assert status == 0, err
    assert "a[/b]" in out.replace("\n", "")


@pytest.mark.parametrize("missing", ["proprio", "state"])
def test_floors_without_columns_are_left_out(
    missing: str, recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, folder = open_dataset(recorded), tmp_path / "data"
    store = create_store(
        folder, env_id=source.env_id, action_spec=source.action_spec, cameras=source.cameras, settings=source.settings,
        control_hz=source.control_hz, horizon=source.horizon, provenance=source.provenance, episodes=len(source),
    )  # fmt: skip
    for index in range(len(source)):
        episode = source.episode(index)
        store.write(index, dataclasses.replace(episode, **{missing: getattr(episode, missing)[:, :0]}))
    status, out, err = run(capsys, monkeypatch, "probe", folder, *PROBE, "--no-description-length")
    assert status == 0, err
    assert f"leaving out {missing}: the data have no columns of it" in err
    names = {row["encoder"] for row in json.loads(out)}
    assert {"pixels", "random", "proprio", "state"} - names == {missing}
    arguments = ("probe", folder, "--encoder", missing, "--readout", "ridge", "--no-description-length")
    status, _, err = run(capsys, monkeypatch, *arguments)
    assert status == 2 and "at least 1 feature, found 0" in err


@pytest.mark.parametrize(
    ("name", "content", "verbs"),
    [
        ("results.json", b'{"rows": [1]}', ("report", "claims")),
        ("results.json", b'{"rows": [{}]}', ("report", "claims")),
        (
            "results.json",
            b'{"rows": [{"env": "a", "encoder": "b", "metric": "c", "value": "x"}]}',
            ("report", "claims"),
        ),
        ("run.json", b"[]", ("report", "claims")),
        ("run.json", b'{"config": {"suites": [{"envs": []}]}}', ("claims",)),
        ("claim_replicates.safetensors", b"\x10\0\0", ("claims",)),
    ],
)
def test_damaged_results_are_named(
    name: str,
    content: bytes,
    verbs: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "results.json").write_text('{"rows": []}')
    (tmp_path / "run.json").write_text('{"config": {"suites": []}}')
    for verb in verbs:
        assert run(capsys, monkeypatch, verb, tmp_path)[0] == 0
    (tmp_path / name).write_bytes(content)
    for verb in verbs:
        status, _, err = run(capsys, monkeypatch, verb, tmp_path)
        assert status == 2 and str(tmp_path / name) in err


def test_learn_from_rewards(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "policy"
    status, text, err = run(
        capsys, monkeypatch, "train-rl", "latentgym/TabletopReach-v0", "--encoder", "state", "-o", out, "--json",
        "--algorithm", "ppo", "--steps", 16, "--checkpoint-every", 8, "--episodes", 2, "--option", "horizon=4",
        "--algorithm-option", "n_steps=8", "--algorithm-option", "batch_size=8",
    )  # fmt: skip
    assert status == 0, err
    found = json.loads(text)
    assert [item["step"] for item in found["training"]["curve"]["checkpoints"]] == [8, 16]
    assert found["training"]["curve"]["length"] == [4, 4, 4, 4]
    assert found["evaluation"]["summary"]["episodes"] == 2
    status, text, err = run(
        capsys, monkeypatch, "rollout", "latentgym/TabletopReach-v0", "--policy", out, "--episodes", 2, "--json"
    )
    assert status == 0, err
    assert json.loads(text)["records"] == found["evaluation"]["records"]


def test_interrupt_keeps_what_is_finished(tmp_path: Path) -> None:
    arguments = ["record", "latentgym/TabletopReach-v0", "-o", str(tmp_path / "data"), "--episodes", "100000"]
    # A process started in the background of a shell script ignores interrupts; this one must not inherit that.
    heeding = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler); {COMMAND[-1]}"
    process = subprocess.Popen([*COMMAND[:-1], heeding, *arguments], stderr=subprocess.PIPE, text=True)
    try:
        while not list(tmp_path.glob("data/episodes/0*")):
            assert process.poll() is None
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "finished work is kept" in err and "Traceback" not in err
    assert list(tmp_path.glob("data/episodes/0*"))


def test_an_interrupt_that_turns_into_an_error_is_still_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Argument:
        @classmethod
        def from_param(cls, value: object) -> object:
            os.kill(os.getpid(), signal.SIGINT)
            return value

    def interrupted(*_: object, **__: object) -> None:
        call = ctypes.CDLL(None).abs
        call.argtypes = [Argument]
        with pytest.raises(ctypes.ArgumentError, match="KeyboardInterrupt") as raised:
            call(1)
        raise raised.value

    monkeypatch.setattr("latentgym.envs.recording.record", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        status, _, err = run(capsys, monkeypatch, "record", "latentgym/TabletopReach-v0", "-o", tmp_path / "data")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert status == 130
    assert "finished work is kept" in err


def test_a_failed_command_exits_with_two(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "latentgym", "study", "nothing.toml", "-o", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("latentgym: ") and done.stderr.count("\n") == 1
