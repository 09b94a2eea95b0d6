"""A released model is used if this device can carry it and it does no worse here; otherwise the one before stays."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attrs import evolve

from device_agent import model_kind
from device_agent.data.loading import Loaded
from device_agent.errors import ModelError
from device_agent.model_kind import Model
from device_agent.releases import Release, Setback, Trial, Unfit
from device_agent.shelf import CURRENT, FOLDER, InUse, Shelf
from protocol.deployments import Deployed
from tests.device_agent import toy_model
from tests.device_agent.toy_model import facts, files, knowing, release, wrong

X = np.array([0.25, 1.0, 0.5, 9.0], np.float32)
ONGOING = Trial(1.0, 59.0, 0, connected=True, answered=True)
OVER = evolve(ONGOING, left=0.0)
Make = Callable[..., Model]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """The kind, as a process makes it: on the home and nothing else."""

    def new(
        *, free: int | None = 1 << 20, data: Loaded | None = None, backend: str = "litert", **more: Any
    ) -> Model:
        in_use = InUse(Shelf(tmp_path), backend)
        return Model(in_use, lambda: data, lambda: free, patience=0.0, **more)

    return new


@pytest.fixture
def fetched(tmp_path: Path) -> Callable[..., Release]:
    return lambda number=1, content=None, told=None: release(tmp_path / "fetched", number, content, told)


def trying(kind: Model, made: Release) -> Model:
    """Up to its trial."""
    assert kind.fit(made.manifest) is None
    kind.stage(made)
    kind.switch(made)
    return kind


def succeed(kind: Model, made: Release) -> dict[str, float]:
    trying(kind, made)
    assert kind.judge(made, ONGOING) is None
    verdict = kind.judge(made, OVER)
    assert verdict is not None
    assert verdict.good, verdict.text
    kind.commit()
    return verdict.facts


def label(tmp_path: Path) -> int | None:
    """What the model in use makes of a sample that is of class 1."""
    return InUse(Shelf(tmp_path), "litert").model(X).label


def test_the_first_model_is_proved_and_kept(make, fetched, tmp_path):
    made = fetched()
    kind = make(data=toy_model.data())
    found = succeed(kind, made)
    assert kind.current() == Deployed(kind="model", version="1.0", manifest=made.sha256)
    assert label(tmp_path) == 1
    assert found["accuracy"] == 1.0
    assert found["width"] == 1.0
    assert found["bytes"] == 4 * (4 * 8 + 8 + 8 * 3 + 3)
    assert found["milliseconds"] > 0
    assert "accuracy-before" not in found
    assert not Shelf(tmp_path).pointer.trial


@pytest.mark.parametrize("backend", toy_model.BACKENDS)
def test_only_files_of_the_runtime_and_of_widths_that_may_be_used_are_fetched(make, fetched, backend):
    kind = make(backend=backend, free=1400)  # 700 for a model: the widest one needs 1000
    names = kind.files(fetched(content=files(widths=(1.0, 0.5, 0.25)), told=facts(1.0, 0.5, 0.25)).manifest)
    ending = "json" if backend == "numpy" else "tflite"
    assert names == ("model.json", f"infer-0.5.{ending}", "weights-0.5", f"infer-0.25.{ending}", "weights-0.25")


def test_the_width_that_the_coordinator_measured_best_is_used(make, fetched, tmp_path):
    told = facts(1.0, 0.5, accuracy_1=0.8, accuracy_0_5=0.8) | {"accuracy-0.5": 0.9}
    succeed(make(), fetched(told=told))
    placed = Shelf(tmp_path).pointer.now
    assert placed is not None
    assert placed.width == 0.5


def test_of_equally_good_widths_the_narrowest_is_used(make, fetched):
    told = facts() | {"accuracy-1": 0.9, "accuracy-0.5": 0.9}
    assert succeed(make(), fetched(told=told))["width"] == 0.5


@pytest.mark.parametrize(
    ("free", "told", "reason"),
    [
        (800, facts(), r"needs 500 bytes of memory or more, it may take 400 here"),
        (1 << 20, facts(max_memory=300), r"needs 500 bytes of memory or more, it may take 300 here"),
        (1 << 20, {}, "holds no model that the runtime litert can run"),
    ],
)
def test_what_this_board_cannot_carry_is_no_release_for_it(make, fetched, free, told, reason):
    assert reason in (make(free=free).fit(fetched(told=told).manifest) or "")


def test_a_release_for_other_runtimes_is_none(make, fetched):
    content = {name: data for name, data in files().items() if not name.endswith(".tflite")}
    assert "runtime litert" in (make().fit(fetched(content=content).manifest) or "")
    assert make(backend="numpy").fit(fetched(content=content).manifest) is None


def test_a_board_that_does_not_know_its_memory_takes_the_widest(make, fetched):
    assert succeed(make(free=None), fetched())["width"] == 1.0


def test_a_model_for_other_samples_is_refused_for_good(make, fetched, tmp_path):
    content = files(input=(5,))
    with pytest.raises(Unfit, match=r"samples of shape \[5\], this device has samples of shape \[4\]"):
        make(data=toy_model.data()).stage(fetched(content=content))
    assert make().current() is None


def test_a_card_that_is_none_is_refused_for_good(make, fetched):
    with pytest.raises(Unfit, match="is not one"):
        make().stage(fetched(content={**files(), "model.json": b"{}"}))


def test_a_model_that_gets_less_right_here_never_comes_into_use(make, fetched, tmp_path):
    kind = make(data=toy_model.data())
    succeed(kind, fetched())
    told = facts(max_accuracy_drop=0.02)
    with pytest.raises(Setback, match=r"gets 0.0% of this device's hold-out right, the model before 100.0%") as caught:
        kind.stage(fetched(2, files(wrong()), told))
    assert not caught.value.retry  # it counts against the release
    assert label(tmp_path) == 1
    assert len([path for path in (tmp_path / FOLDER).iterdir() if path.is_dir()]) == 1, "nothing is left of it"


def test_without_a_bound_it_may_be_as_bad_as_it_likes(make, fetched, tmp_path):
    kind = make(data=toy_model.data())
    succeed(kind, fetched())
    found = succeed(kind, fetched(2, files(wrong())))
    assert (found["accuracy"], found["accuracy-before"]) == (0.0, 1.0)
    assert label(tmp_path) == 2


def test_a_model_that_is_too_slow_never_comes_into_use(make, fetched):
    with pytest.raises(Setback, match=r"ms to answer at best, it may take 1e-09"):
        make().stage(fetched(told=facts(max_milliseconds=1e-9)))


def test_a_width_that_is_too_slow_gives_way_to_a_narrower_one(make, fetched, monkeypatch, tmp_path):
    class Paced(model_kind.Predictor):
        """Two milliseconds at full width, one at half."""

        def __call__(self, x):
            return evolve(super().__call__(x), milliseconds=2 * self.width)

    monkeypatch.setattr(model_kind, "Predictor", Paced)
    kind = make()
    made = fetched(told=facts(max_milliseconds=1.5))
    kind.stage(made)
    kind.switch(made)
    placed = Shelf(tmp_path).pointer.now
    assert placed is not None
    assert (placed.width, placed.facts["milliseconds"]) == (0.5, 1.0)


def test_answers_that_fail_during_the_trial_bring_the_model_before_back(make, fetched, tmp_path):
    kind, first = make(), fetched()
    succeed(kind, first)
    fragile = knowing()
    fragile["dense1.weight"][3, 3], fragile["dense1.bias"][3] = 1e38, -1.5e38  # overflows for a fourth number of 2
    fragile["dense2.weight"][3, :] = 3e38
    made = fetched(2, files(fragile))
    trying(kind, made)
    small = np.array([0.25, 1.0, 0.5, 0.0], np.float32)
    assert kind._in_use.model(small).label == 1
    with pytest.raises(ModelError):
        kind._in_use.model(X)
    verdict = kind.judge(made, ONGOING)
    assert verdict is not None
    assert (verdict.good, verdict.text) == (False, "1 of 2 questions had no answer")
    kind.back()
    assert label(tmp_path) == 1
    assert kind.current() == first.deployed


def test_a_model_that_does_worse_on_newer_samples_goes_back(make, fetched, tmp_path):
    """The hold-out is looked at again when the trial ends."""
    bound = facts(max_accuracy_drop=0.1)
    succeed(make(data=toy_model.data()), fetched())
    made = fetched(2, told=bound)
    trying(make(data=toy_model.data()), made)
    loaded = toy_model.data()
    changed = evolve(loaded.held_out, y=(loaded.held_out.y + 1) % 3)
    later = make(data=evolve(loaded, held_out=changed))
    assert later.judge(made, ONGOING) is None
    verdict = later.judge(made, OVER)
    assert verdict is not None
    assert not verdict.good
    assert "0.0%" in verdict.text
    assert verdict.facts["accuracy-before"] == 1.0


def test_a_model_that_grows_slow_goes_back(make, fetched):
    kind = make()
    made = fetched(told=facts(max_milliseconds=1000))
    trying(kind, made)
    kind._times += [2000.0] * 5
    verdict = kind.judge(made, OVER)
    assert verdict is not None
    assert not verdict.good
    assert "it may take 1000" in verdict.text


def test_files_that_were_damaged_after_the_switch_bring_the_model_before_back(make, fetched, tmp_path):
    succeed(make(), fetched())
    made = fetched(2, files(wrong()))
    trying(make(), made)
    (tmp_path / FOLDER / made.sha256 / "weights-1").write_bytes(b"")
    kind = make()  # power was cut, and the file had not come to the disk
    verdict = kind.judge(made, ONGOING)
    assert verdict is not None
    assert "damaged" in verdict.text
    kind.back()
    assert label(tmp_path) == 1


@pytest.mark.parametrize("end", ["back", "commit"])
def test_every_step_may_come_again_in_another_process(make, fetched, tmp_path, end):
    """Power fails after each of them, before anybody has noted that it was done."""
    first, made = fetched(), fetched(2, files(wrong()))
    succeed(make(), first)
    for _ in range(2):
        make().stage(made)
    assert label(tmp_path) == 1
    for _ in range(2):
        make().switch(made)
    assert label(tmp_path) == 2
    kind = make()
    assert kind.judge(made, ONGOING) is None
    for _ in range(2):
        getattr(make(), end)()
    assert label(tmp_path) == (1 if end == "back" else 2)
    (kept,) = [path.name for path in (tmp_path / FOLDER).iterdir() if path.is_dir()]
    assert kept == (first if end == "back" else made).sha256


def test_a_board_whose_memory_was_taken_meanwhile_may_try_again(make, fetched):
    with pytest.raises(Setback, match="less memory free") as caught:
        make(free=100).stage(fetched())
    assert caught.value.retry


def test_a_disk_that_cannot_be_written_may_be_so_no_more(make, fetched, tmp_path):
    (tmp_path / FOLDER).write_text("in the way")
    with pytest.raises(Setback, match="cannot be written") as caught:
        make().stage(fetched())
    assert caught.value.retry


def test_going_back_from_the_first_model_leaves_none(make, fetched):
    kind = trying(make(), fetched())
    kind.back()
    assert kind.current() is None


def test_a_damaged_model_is_none_so_that_it_can_be_deployed_again(make, fetched, tmp_path):
    made = fetched()
    succeed(make(), made)
    (tmp_path / FOLDER / made.sha256 / "weights-1").write_bytes(b"x")
    assert make().current() is None
    succeed(make(), made)
    assert label(tmp_path) == 1


def test_the_pointer_is_one_small_file(make, fetched, tmp_path):
    succeed(make(), fetched())
    assert json.loads((tmp_path / FOLDER / CURRENT).read_text())["now"]["version"] == "1.0"
