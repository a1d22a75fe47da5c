"""The networks: the original one exactly, normalisation inside, and a map that adds up to the answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from chestxray.errors import RecipeInvalid
from chestxray.schema import Preprocessing, Resize
from chestxray.training.networks import NETWORKS, AlexNet5, Classifier, build, log_odds, parameters_of

SIZE = (112, 160)


def preprocessing(height: int = 112, width: int = 160) -> Preprocessing:
    return Preprocessing(height, width, Resize.SQUEEZE, 0.482, 0.236)


def original(channels: int = 1) -> nn.Sequential:
    """The network as the original work wrote it: ReLU before pooling, sizes by hand."""
    layers: list[nn.Module] = []
    for before, after in ((channels, 16), (16, 32), (32, 64), (64, 128), (128, 256)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    dense = [nn.Flatten(), nn.Dropout(0.5), nn.Linear(15 * 256, 2048), nn.ReLU(), nn.Dropout(0.5), nn.Linear(2048, 2)]
    return nn.Sequential(*layers, *dense)


def stirred(module: nn.Module, seed: int = 0) -> nn.Module:
    """Batch statistics away from 0 and 1, so that nothing holds by accident. Gains may be negative."""
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.running_mean, layer.weight, layer.bias):
                tensor.data = torch.randn(tensor.shape, generator=generator)
            layer.running_var.data = 0.5 + torch.rand(layer.running_var.shape, generator=generator)
    return module.eval()


def films(count: int, size: tuple[int, int] = SIZE, seed: int = 0) -> Tensor:
    levels = np.random.default_rng(seed).integers(0, 256, (count, 1, *size), dtype=np.uint8)
    return torch.from_numpy(levels)


@pytest.mark.parametrize(("channels", "parameters"), [(1, 8_263_778), (3, 8_264_066)])
def test_alexnet5_has_exactly_the_original_number_of_parameters(channels: int, parameters: int) -> None:
    assert parameters_of(AlexNet5(channels, *SIZE, 0.5)) == parameters == parameters_of(original(channels))


@pytest.mark.parametrize("training", [False, True])
def test_pooling_before_relu_is_the_original_function_with_the_original_gradients(training: bool) -> None:
    ours, theirs = AlexNet5(1, *SIZE, 0.0), original()
    for dropped in (layer for layer in theirs if isinstance(layer, nn.Dropout)):
        dropped.p = 0.0
    stirred(ours)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    ours.train(training)
    theirs.train(training)
    batch = (films(3).float() - 123.0) / 60.0
    torch.testing.assert_close(ours(batch), theirs(batch), rtol=1e-5, atol=1e-5)
    for network in (ours, theirs):
        network(batch)[:, 1].sum().backward()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-4)


@given(height=st.integers(32, 100), width=st.integers(32, 100))
@settings(max_examples=8)
def test_layer_sizes_follow_from_the_input_size(height: int, width: int) -> None:
    classifier = build("alexnet5", preprocessing(height, width)).eval()
    with torch.inference_mode():
        assert classifier(films(2, (height, width))).shape == (2, 2)
        logit, activation = classifier.explain(films(2, (height, width)))
    assert logit.shape == (2,)
    assert activation.shape == (2, height // 16, width // 16)


def test_a_film_too_small_for_the_network_is_refused() -> None:
    class Tiny(nn.Module):
        height, width, mean, std = 31, 160, 0.5, 0.2

    with pytest.raises(RecipeInvalid, match="31 x 160 pixels are too small for alexnet5: each side needs at least 32"):
        build("alexnet5", Tiny())


def test_an_unknown_network_is_refused_with_those_that_exist() -> None:
    with pytest.raises(RecipeInvalid, match=r"no network 'alexnet6'; there are alexnet5"):
        build("alexnet6", preprocessing())


@pytest.mark.parametrize("name", NETWORKS)
def test_normalisation_is_inside_the_classifier(name: str) -> None:
    classifier = build(name, preprocessing()).eval()
    levels = films(2)
    by_hand = (levels.double() / 255 - 0.482) / 0.236
    with torch.inference_mode():
        expected = classifier.network(by_hand.float())
        torch.testing.assert_close(classifier(levels), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(classifier(levels.float()), classifier(levels))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_generator_alone(name: str) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first, second, other = (build(name, preprocessing(), seed=seed) for seed in (7, 7, 8))
    assert torch.equal(torch.rand(1), expected)
    pairs = list(zip(first.parameters(), second.parameters(), strict=True))
    assert all(torch.equal(mine, same) for mine, same in pairs)
    assert any(not torch.equal(mine, its) for mine, its in zip(first.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_film_answers_the_same_alone_and_in_a_batch(name: str) -> None:
    classifier = stirred(build(name, preprocessing()))
    batch = films(4)
    with torch.inference_mode():
        logits, maps = classifier.explain(batch)
        for index in range(4):
            logit, activation = classifier.explain(batch[index : index + 1])
            torch.testing.assert_close(logit[0], logits[index], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(activation[0], maps[index], rtol=1e-3, atol=1e-4)


# --------------------------------------------------------------------------- the map


def classifier_of(seed: int) -> Classifier:
    stirred_network = stirred(build("alexnet5", preprocessing(), seed=seed), seed)
    assert isinstance(stirred_network, Classifier)
    return stirred_network


def constant_part(classifier: Classifier, batch: Tensor) -> Tensor:
    """What the dense layers' biases add to the log-odds, found by differentiation: z - dz/df * f."""
    network = classifier.network
    assert isinstance(network, AlexNet5)
    features = []
    hook = network.hidden.register_forward_pre_hook(lambda _module, arguments: features.append(arguments[0]))
    odds = log_odds(classifier(batch))
    hook.remove()
    (gradient,) = torch.autograd.grad(odds.sum(), features[0])
    return (odds - (gradient * features[0]).sum(dim=1)).detach()


@given(seed=st.integers(0, 1000))
@settings(max_examples=5)
def test_the_map_and_the_biases_add_up_to_the_log_odds(seed: int) -> None:
    classifier = classifier_of(seed)
    batch = films(2, seed=seed)
    with torch.inference_mode():
        logit, activation = classifier.explain(batch)
        torch.testing.assert_close(logit, log_odds(classifier(batch)))
    expected = logit - constant_part(classifier, batch)
    scale = float(activation.abs().sum(dim=(1, 2)).max())
    torch.testing.assert_close(activation.sum(dim=(1, 2)), expected, rtol=1e-4, atol=1e-5 * scale)


def test_equal_places_share_the_evidence_and_nothing_is_lost() -> None:
    classifier = classifier_of(0)
    grey = torch.full((1, 1, *SIZE), 90, dtype=torch.uint8)  # inside, every window of the pooling is a tie
    with torch.inference_mode():
        logit, activation = classifier.explain(grey)
    torch.testing.assert_close(activation.sum(), (logit - constant_part(classifier, grey))[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(activation[0, 2, 4], activation[0, 2, 5], rtol=1e-4, atol=1e-5)


def test_rows_that_the_network_does_not_see_add_nothing() -> None:
    with torch.inference_mode():
        _, activation = classifier_of(0).explain(films(1))
    assert activation.shape == (1, 7, 10)
    assert float(activation[0, 6].abs().max()) == 0.0  # pixels 96 to 111 fall out of the last pooling
    assert float(activation[0, :6].abs().min()) > 0.0


def test_other_weights_give_another_map() -> None:
    batch = films(1)
    with torch.inference_mode():
        first, second = (classifier_of(seed).explain(batch)[1].flatten() for seed in (1, 2))
    correlation = np.corrcoef(first, second)[0, 1]
    assert abs(correlation) < 0.9
    assert not torch.allclose(first, second, rtol=0.1)


@pytest.mark.slow
def test_the_map_points_at_the_place_that_decides() -> None:
    """The network is fitted to see a bright square; then the square moves and the map follows."""
    classifier = build("alexnet5", preprocessing(), dropout=0.0, seed=0)
    rng = np.random.default_rng(0)

    def drawn(marked: bool, cell: tuple[int, int]) -> Tensor:
        film = rng.normal(100, 10, SIZE)
        if marked:
            top, left = cell[0] * 16, cell[1] * 16
            film[top : top + 16, left : left + 16] += 90
        return torch.from_numpy(film.clip(0, 255).astype(np.float32))

    optimiser = torch.optim.AdamW(classifier.parameters(), lr=1e-3)
    for _ in range(30):
        labels = torch.from_numpy(rng.integers(0, 2, 16))
        batch = torch.stack([drawn(bool(y), (rng.integers(6), rng.integers(10))) for y in labels])[:, None]
        loss = nn.functional.cross_entropy(classifier(batch), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    classifier.eval()
    cells = [(1, 1), (1, 8), (4, 2), (4, 7), (2, 5)]
    with torch.inference_mode():
        logits, maps = classifier.explain(torch.stack([drawn(marked=True, cell=cell) for cell in cells])[:, None])
    assert bool((logits > 0).all())
    for (row, column), activation in zip(cells, maps, strict=True):
        highest = np.unravel_index(int(activation.argmax()), activation.shape)
        assert max(abs(highest[0] - row), abs(highest[1] - column)) <= 1
