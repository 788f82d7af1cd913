"""Small streams, networks and plugins for the tests of everything that touches Avalanche."""

import warnings

import pandas as pd
import torch
from torch import nn

from clmeta import MetaOptimize
from clmeta.streams import abrupt_classes, load_dataset, permuted_inputs

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # jaxopt and others complain while they are imported
    from avalanche.core import SupervisedPlugin
    from avalanche.models import IncrementalClassifier, MultiHeadClassifier, MultiTaskModule
    from avalanche.training import supervised
    from avalanche.training.plugins import EvaluationPlugin

from clmeta.strategies import MetaOptimizePlugin, Online

#: Warnings of Avalanche 0.6 and torch about their own code.
IGNORED = (
    "ignore:__array_wrap__ must accept context:DeprecationWarning",
    "ignore:Using a non-tuple sequence:UserWarning",
    "ignore:.torch.jit.script. is deprecated:FutureWarning",
)
DIGITS = load_dataset("digits", download=False)
PIXELS = 64


def permuted(tasks=2, steps=30, **options):
    return permuted_inputs(DIGITS, tasks=tasks, steps_per_task=steps, **options)


def growing(tasks=3, steps=25, **options):
    """Three, six, nine classes: a head has to grow."""
    return abrupt_classes(
        DIGITS, tasks=tasks, classes_per_task=3, head="growing", steps_per_task=steps, **options
    )


def mlp(n_classes=10):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 16), nn.ReLU(), nn.Linear(16, n_classes))


class GrowingNet(nn.Module):
    """One head that gains units."""

    def __init__(self, units=1, masking=True):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(PIXELS, 16)
        self.classifier = IncrementalClassifier(16, initial_out_features=units, masking=masking)

    @property
    def head(self):
        return self.classifier.classifier

    def forward(self, x):
        return self.classifier(torch.relu(self.body(x.flatten(1))))


class ManyHeads(MultiTaskModule):
    """A head for every task."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(PIXELS, 16)
        self.classifier = MultiHeadClassifier(16, initial_out_features=10)

    def forward(self, x, task_labels):
        return self.classifier(torch.relu(self.body(x.flatten(1))), task_labels)


def meta_optimize(model, **options):
    options = {"blocks": "layer", "alpha0": 1e-3, "eta": 1e-2, **options}
    return MetaOptimize(model.named_parameters(), **options)


def silent():
    """An evaluator without metrics, without the warning that there are no loggers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return EvaluationPlugin()


def build(name, model, optimizer, plugins=(), **options):
    """A strategy of Avalanche by its class name, with the plugin that MetaOptimize needs."""
    memory = {"mem_size": 20, "batch_size_mem": 4}
    needed = {
        "Replay": {"mem_size": 20},
        "EWC": {"ewc_lambda": 1.0},
        "SynapticIntelligence": {"si_lambda": 0.1},
        "LwF": {"alpha": 1.0, "temperature": 2.0},
        "GEM": {"patterns_per_exp": 10},
        "ER_ACE": memory,
        "DER": memory,
        "MER": memory,
        "MIR": {**memory, "subsample": 10},
    }
    return getattr(supervised, name)(
        model=model,
        optimizer=optimizer,
        criterion=nn.CrossEntropyLoss(),
        train_epochs=1,
        **{"train_mb_size": 1, **needed.get(name, {}), **options},
        evaluator=silent(),
        plugins=[MetaOptimizePlugin(), *plugins],
    )


class Spy(SupervisedPlugin):
    """Calls a function of the strategy at one event."""

    def __init__(self, event, look):
        super().__init__()
        self.seen = []
        setattr(self, event, lambda strategy, *a, **k: self.seen.append(look(strategy)))


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def copied(optimizer, p):
    """A parameter's state, apart from later steps."""
    state = optimizer.state.get(p, {})
    return {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in state.items()}


def train(strategy, benchmark, tasks=None):
    for experience in list(benchmark.train_stream)[:tasks]:
        strategy.train(experience, shuffle=False)


def trajectory(folder):
    return pd.read_parquet(folder / "trajectory")


def evaluator(*metrics, loggers=()):
    plugin = silent()
    plugin.metrics, plugin.loggers = list(metrics), list(loggers)
    return plugin


def online(model, plugins=(), **options):
    optimizer = options.pop("optimizer", None) or meta_optimize(model)
    return Online(model=model, optimizer=optimizer, plugins=list(plugins), **options)
