"""YAML that is refused is named by file, line and column; so are settings that a run could not use together."""

from pathlib import Path

import pytest

from calibrated_rl.config.load import load_config
from calibrated_rl.errors import UserError
from calibrated_rl.settings.yaml_files import read_yaml
from tests.support.paths import ROOT

HUMAN = "human: calibrated_rl.examples.front_desk:FrontDeskHuman\n"
YAML = {
    "list": (b"- a\n- b\n", ":1:1: the file is a list"),
    "value": (b"hello\n", ":1:1: the file is a single value"),
    "empty": (b"", ":1:1: the file is empty"),
    "comments": (b"# nothing\n", ":1:1: the file is empty"),
    "two documents": (b"name: a\n---\nname: b\n", ":2:1: a second document begins here"),
    "tab": (b"training:\n\tupdates: 3\n", ":2:1: a tab stands where YAML allows none"),
    "twice": (b"training: {updates: 3}\nname: a\ntraining: {}\n", ":3:1: the key 'training' occurs twice, first"),
    "twice below": (b"policy:\n  engine: {dtype: float32,\n dtype: bfloat16}", ":3:2: the key 'policy.engine.dtype'"),
    "twice in a list": (b"task_config: {a: [{b: 1, b: 2}]}", ":1:26: the key 'task_config.a[0].b' occurs twice"),
    "UTF-16": ("name: a".encode("utf-16"), ":1:1: the file is UTF-16"),
    "UTF-16 without a mark": ("name: a".encode("utf-16-be"), ":1:1: the file is UTF-16"),
    "Latin-1": (b"name: a\nlabel: caf\xe9\n", ":2:11: byte 0xe9 is not UTF-8 text"),
    "binary": (b"\x7fELF\x02\x01\x01", ":1:1: the character U+007F is not allowed in a YAML file"),
    "no alias": (b"label: *nobody\n", ":1:8: found undefined alias 'nobody'"),
    "in a circle": (b"task_config: &x {b: *x}\n", ":1:14: 'task_config.b' contains itself"),
    "bombs": (
        b"task_config:\n a: &a [1,1,1,1,1,1,1,1,1,1]\n"
        + b"".join(b" %c: &%c [%s]\n" % (c + 1, c + 1, b",".join([b"*%c" % c] * 10)) for c in range(97, 104)),
        ": more than 100000 values",
    ),
    "merging a number": (b"training: {<<: 3}", "expected a mapping or list of mappings for merging"),
    "key off": (b"training: {off: 1}", ":1:12: the key off in 'training' is no text: YAML reads it as true or false"),
    "key of number": (b"1: 2", ":1:1: the key 1 is no text"),
    "key of null": (b"task_config: {~: 1}", ":1:15: the key ~ in 'task_config' is no text: YAML reads it as null"),
    "key of list": (b"? [a]\n: 1", "a key is a list or a mapping"),
    "tag": (b"name: !!python/object:os.system x", ":1:7: not readable as YAML: could not determine a constructor"),
    "open": (b"arms: [start", "not readable as YAML"),
    "off for text": (b"name: off", ":1:1: name is false: write text in quotes"),
    "no for a choice": (b"calibration: {source: no}", ":1:15: calibration.source is false: choose logs or pretraining"),
    "number for text": (b"label: 12:30", ":1:1: label is 750: write text in quotes"),
    "nan": (b"training:\n  learning_rate: .nan\n", ":2:3: training.learning_rate is nan: write a finite number"),
    "merged in": (b"training: {<<: {updates: 0}}", ":1:17: training.updates is 0: it must be at least 1"),
    "digits": (b"training: {updates: " + b"9" * 5000 + b"}", "for integer string conversion"),
    "null": (b"training:\n", ":1:1: training is null: write settings as key: value"),
    "interpolation": (b"name: ${nowhere}", "key 'name': Interpolation key 'nowhere' not found"),
}  # fmt: skip


@pytest.mark.parametrize("name", YAML)
def test_yaml_that_is_refused_names_file_line_and_column(name: str, tmp_path: Path) -> None:
    content, words = YAML[name]
    file = tmp_path / "bad.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError) as refused:
        load_config(file, [HUMAN.strip().replace(": ", "=")])
    message = str(refused.value)
    assert message.startswith(str(file)) and words in message and "\n" not in message


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="is a folder"):
        load_config(tmp_path)
    with pytest.raises(UserError, match="there is no config file"):
        load_config(tmp_path / "nowhere.yaml")
    with pytest.raises(UserError, match="is not a regular file"):
        load_config("/dev/null")
    file = tmp_path / "mine.yaml"
    file.write_text("name: a")

    def denied(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(UserError, match=r"mine.yaml cannot be read: Permission denied"):
        load_config(file)


def test_yaml_that_is_right_means_what_it_says(tmp_path: Path) -> None:
    file = tmp_path / "good.yaml"
    file.write_bytes(
        b"\xef\xbb\xbfname: &n good\nlabel: *n\narms: [start]\ntask_config: &t {seed: 3}\n"
        b"logs: {<<: *t, calibration: 50}\ntraining: {learning_rate: 1e-4, updates: '7'}\n"
    )
    config = load_config(file)
    assert (config.name, config.label, config.task_config) == ("good", "good", {"seed": 3})
    assert config.logs["seed"] == 3 and config.logs["reader"].endswith("ScriptedLogs")
    assert (config.training.learning_rate, config.training.updates) == (1e-4, 7)
    assert read_yaml(file).marks["training", "updates"] == (6, 33)


TOGETHER = {
    "training.advantage=dr_grpoo": "rloo or turn_group; did you mean 'dr_",
    "training.group_size=1": "training.group_size is 1: the advantage grpo compares the dialogues of a group",
    "training.learning_rates={calibratd: 1e-4}": "did you mean 'calibrated'?",
    "training.loss_configs={statik: {clip_low: 0.1}}": "did you mean 'static'?",
    "training.loss_configs={static: {clip_lwo: 0.1}}": "unknown key 'training.loss_configs.static.clip_lwo'",
    "training.loss=calibrated_rl.learner.losses.grpo:GPRO": "did you mean 'GRPO'?",
    "training.loss=calibrated_rl.examples.front_desk:FrontDesk": "is no loss: it has no __call__",
    "training.loss_config.clip_hihg=0.3": "unknown key 'training.loss_config.clip_hihg'; did you mean",
    "training.loss_config.correction.mode=trunkate": "training.loss_config.correction.mode is 'trunkate': choose",
    "training.loss_config.clip_low=1.5": "training.loss_config.clip_low is 1.5: it must be above 0 and at most 1",
    "training.minibatches=4000": "cannot be cut into so many",
    "training.checkpoint_store=s4://bucket": "training.checkpoint_store is 's4://bucket': write s3://",
    "task=calibrated_rl.examples.front_desk:FrontDsk": "did you mean 'FrontDesk'?",
    "task=calibrated_rl.examples.front_desk:FrontDeskHuman": "is no task: it has no scenarios",
    "task_config.change_share=2": "task_config.change_share is 2: it must be at least 0 and at most 1",
    "task_config.sead=2": "unknown key 'task_config.sead'; did you mean 'task_config.seed'?",
    "human_config.cooperativenes=1": "did you mean 'human_config.cooperativeness'?",
    "logs.calibratoin=9": "unknown key 'logs.calibratoin'; did you mean 'logs.calibration'?",
    "logs.reader=null": "logs.reader is missing",
    "pretraining.logs.calibratoin=9": "did you mean 'pretraining.logs.calibration'?",
    "pretraining.human_config.grumbel=1": "did you mean 'pretraining.human_config.grumble'?",
    "calibration.method=calibrated_rl.calibration.plain:PlainSFt": "did you mean 'PlainSFT'?",
    "calibration.method_config.ratio_clip=0": "calibration.method_config.ratio_clip is 0: it must be at least 1",
    "learner.lora={polcy: {}}": "did you mean 'policy'?",
    "learner.lora={policy: {rnk: 3}}": "did you mean 'learner.lora.policy.rank'?",
    "policy.engine.labels={part: ''}": "policy.engine.labels.part is ''",
    "policy.engine.num_gpus=1.5": "Ray gives shares of one GPU, or whole ones",
    "policy.sampling.max_turn_tokens=600": "leaves no space for the tokens before a turn",
    "seeds=[]": "seeds is empty",
    "seeds=[0,0]": "seeds names 0 twice",
    "arms=[]": "arms is empty",
    "arms=[start,start]": "arms names start twice",
    "control_arms=[static]": "control_arms names static, which is among the arms",
    "name=../../x": "name is '../../x': it must be a name for a folder",
    "name=/tmp/x": "name is '/tmp/x'",
    "name=a//b": "name is 'a//b'",
    "variants={a: {change: [training.updatez=3]}}": "variants.a.change: unknown key 'training.updatez'",
    "variants={a: {change: [training.advantage=dr_grpoo]}}": "variants.a.change: training.advantage is 'dr_grpoo'",
    "variants={a: {change: [task_config.sead=3]}}": "variants.a.change: unknown key 'task_config.sead'",
    "variants={a: {change: [updates]}}": "variants.a.change has 'updates': write key=value",
    "variants={a: {change: [name=elsewhere]}}": "variants.a.change has 'name=elsewhere', which only the study may set",
    "variants={a: {arms: [calibratd]}}": "did you mean 'calibrated'?",
    "variants={a: {seeds: []}}": "seeds is empty",
    "variants={main: {}}": "variants.main",
    "variants={a: {change: ['variants.b.seeds=[1]']}}": "has 'variants.b.seeds=[1]', which only the study may set",
    "variants={a: {change: ['variants[b]={}']}}": "has 'variants[b]={}', which only the study may set",
    "variants={a: {seeds: [0, 0]}}": "variants.a: seeds names 0 twice",
    "label=${oc.env:NOT_SET}": "key 'label': the environment variable NOT_SET is not set; set it, or write ${oc.env:",
    "training.updates=${nowhere}": "key 'training.updates': Interpolation key 'nowhere' not found",
    "label=${label}": "key 'label': Recursive interpolation detected",
    "label=${oc.env:}": "key 'label': env() missing 1 required",
    "training." * 2000 + "x=3": "no key has so many parts",
    "policy.model=null": "policy.model is null: write text: text that is not empty",
    "policy.sampling.temperature=0.001": "policy.sampling: temperature is 0.001: vLLM samples at no temperature",
    'label="a\\0b"': "label is 'a\\x00b': it contains the character U+0000",
    'task="a\\0b.py:Mine"': "task is 'a\\x00b.py:Mine': it contains the character U+0000",
    "task=./configs/dev:Mine": "is no import path: write package.module:Class or file.py:Class",
    "evaluation.logs=10": "evaluation.logs is 10: it must be at least 12",
    "shift.dialogues=5": "shift.dialogues is 5: a classifier is cross-fitted on them in 3 folds; it must be at least 6",
    "shift.estimators=[similarit]": "did you mean 'similarity'?",
    "logs.held_out=11": "logs.held_out is 11: random halves of them are cross-fitted in 3 folds; it must be at least",
    "logs.monitor=0": "logs.monitor is 0",
    "calibration.reserve=4000": "calibration.reserve is 4000, of logs.calibration, 4000: no log would be left",
    "pretraining.logs.monitor=0": "pretraining.logs.monitor is 0: its simulator is fitted to them",
    "training..updates=3": "is not key=value",
    "training={updates: 3, updates: 4}": "occurs twice",
    "training.updates=": "training.updates is null: write a whole number, at least 1",
}  # fmt: skip


@pytest.mark.parametrize("change", TOGETHER)
def test_settings_that_a_run_could_not_use_are_named_at_loading(change: str) -> None:
    with pytest.raises(UserError) as refused:
        load_config(ROOT / "configs" / "dev.yaml", [change])
    message = str(refused.value)
    assert TOGETHER[change] in message and message.startswith("command line: "), message
    assert "\n" not in message


def test_white_space_around_the_equals_sign_is_nothing() -> None:
    change = "variants={a: {change: ['training.minibatches = 2']}}"
    config = load_config(ROOT / "configs" / "dev.yaml", [" training.updates = 7", change])
    assert config.training.updates == 7
    assert load_config(ROOT / "configs" / "dev.yaml", ["simulator.sampling.temperature=0.01"])


def test_the_last_word_is_the_one_that_is_named(tmp_path: Path) -> None:
    file, other = tmp_path / "mine.yaml", tmp_path / "other.yaml"
    file.write_text("arms: [start]\ntraining:\n  updates: 0\n  minibatches: 0\n")
    other.write_text("training: {minibatches: -1}\n")
    with pytest.raises(UserError) as refused:
        load_config(file, [str(other)])
    assert str(refused.value).splitlines() == [
        f"{file}:3:3: training.updates is 0: it must be at least 1",
        f"{other}:1:12: training.minibatches is -1: it must be at least 1",
    ]
