"""The Python face: functions of the names of the commands, and the runs, models and examples that they return.

`import icl_bench as icl` finds them: `icl.run`, `icl.compare`, `icl.sweep`, `icl.load`, `icl.task`, `icl.Session`.

    runs = icl.run("assoc-recall", ["softmax", "power:p=2"], seeds=range(3), preset="quick")
    runs.frame().groupby("arch").accuracy.mean()
    logits = runs[0].model()(icl.task("assoc-recall").batch(8).inputs)
"""
