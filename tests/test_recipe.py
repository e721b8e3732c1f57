import pytest

from medqa.config import RunConfig
from medqa.errors import ConfigError
from medqa.recipe import describe_fields, dump, load_recipe, recipe_names


def test_precedence_is_default_then_recipe_then_set(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("train: {epochs: 3, batch_size: 5}")
    config = load_recipe(str(file), ["train.batch_size=7", "train.learning_rate=1e-5"])
    assert (config.train.epochs, config.train.batch_size) == (3, 7)
    assert config.train.learning_rate == 1e-5
    assert config.train.seed == RunConfig().train.seed


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train.lora.rnak=4"], "train.lora.rnak: unknown. Did you mean train.lora.rank?"),
        (["train.epochs=0"], r"train.epochs: input should be greater than 0 \(found 0\)"),
        (["model.dtype=fp8"], "model.dtype"),
        (["train.epochs"], "not of the form a.b=v"),
        (["data.name.x=1"], "'name' is a value, not a section"),
        (["train=5"], "train"),
    ],
)
def test_a_wrong_setting_is_named_with_what_was_meant(settings, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_recipe("medmcqa", settings)
    assert "recipe fields" in caught.value.hint or caught.value.hint.startswith("for example")


def test_unknown_recipes_get_a_suggestion():
    with pytest.raises(ConfigError, match="unknown recipe") as caught:
        load_recipe("medmcq")
    assert "did you mean 'medmcqa'" in caught.value.hint


@pytest.mark.parametrize("text", ["train: [", "- 1", "\t"])
def test_a_file_that_is_no_recipe_is_refused(tmp_path, text):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError):
        load_recipe(str(file))
    with pytest.raises(ConfigError, match="can't be read"):
        load_recipe(str(tmp_path / "none.yaml"))


def test_recipes_cannot_run_code(tmp_path):
    file = tmp_path / "evil.yaml"
    file.write_text("train: !!python/object/apply:os.system ['touch hacked']")
    with pytest.raises(ConfigError):
        load_recipe(str(file))


def test_recipes_cannot_ask_for_trust(tmp_path):
    file = tmp_path / "evil.yaml"
    file.write_text("model: {name: ORG/EVIL, trust_remote_code: ORG/EVIL}")
    with pytest.raises(ConfigError, match="asks to run code of 'ORG/EVIL'"):
        load_recipe(str(file))
    asked = load_recipe("medmcqa", ["model.trust_remote_code=ORG/OWN"])
    assert asked.model.trust_remote_code == "ORG/OWN"


def test_a_dumped_config_is_a_recipe_that_gives_it_back(tmp_path):
    config = load_recipe("quickstart", ["train.lora.targets=[q_proj]"])
    (tmp_path / "r.yaml").write_text(dump(config))
    assert load_recipe(str(tmp_path / "r.yaml")) == config


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_loads(name):
    assert load_recipe(name)


def test_every_setting_is_described():
    for key, _, text in describe_fields():
        assert text.endswith("."), key
