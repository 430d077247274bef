"""A user's program: type-checked by mypy and pyright as strictly as they can, and run."""

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import fastmlp
from fastmlp import functional
from fastmlp.data import Images, synthetic
from fastmlp.training import Epoch, History, Score, evaluate, load, load_into, save

net = fastmlp.MLP(784, [16, 10])
chain = fastmlp.Sequential(nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, 10))
own: nn.Sequential = fastmlp.fuse(nn.Sequential(nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, 10)))
report = fastmlp.fuse(nn.Sequential(nn.Linear(4, 3), nn.GELU(), nn.Linear(3, 2)), report=True)
kept: nn.Sequential = report.model
swapped: list[str] = [name for name, _ in report.swapped]

optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
step = fastmlp.TrainStep(net, fastmlp.CrossEntropyLoss(label_smoothing=0.1), optimizer)
x, y = torch.rand(32, 784), torch.randint(10, (32,))
loss: Tensor = step(x, y)
engine: str = str(step.engine)


def show(epoch: Epoch) -> None:
    """What `on_epoch` takes."""
    print(epoch.number, epoch.train_loss)


train, test = synthetic(train=200, test=100)
images: Images = train
history: History = fastmlp.fit(chain, train, test, epochs=1, batch_size=64, on_epoch=show)
again: History = fastmlp.training.fit(own, (x, y), epochs=1, loss=fastmlp.CrossEntropyLoss())
first: float = history.epochs[0].train_loss
score: Score = evaluate(chain, test)
wanted: float = score.loss

hidden = torch.rand(8, 16, requires_grad=True)
token_loss: Tensor = functional.linear_cross_entropy(hidden, torch.rand(50, 16), torch.randint(50, (8,)))
logits: Tensor = functional.mlp(hidden, [torch.rand(4, 16)], [None], activation="relu")

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "net.safetensors"
    save(chain, path)
    state, position = load(path)
    load_into(chain, path)
    tensors: dict[str, Tensor] = state

with fastmlp.profile(net) as profile:
    step(x, y)
seconds: float = profile.seconds
cost: fastmlp.Cost = fastmlp.cost(net, 256, device="h100")
reason: str = fastmlp.backends.choose(x).reason
print(loss.item(), first, wanted, engine, reason, seconds, len(swapped))
