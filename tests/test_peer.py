"""Test the PyTorch code of airbench94-Muon, with which the speedruns are compared."""

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `torch`")

from benchmarks.peers import airbench94_muon as peer  # noqa: E402


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def test_parameters_are_as_many_as_published() -> None:
    network = peer.Network()
    whitening, head = 24 * 3 * 2 * 2, 256 * 10
    kernels = 9 * (24 * 64 + 64 * 64 + 64 * 256 + 3 * 256 * 256)
    biases, scales = 24 + 2 * (64 + 256 + 256), 2 * (64 + 256 + 256)
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert trained == kernels + biases + head
    assert trained + whitening == 1_971_640
    # PyTorch also counts BatchNorm's scales, which airbench freezes at 1.
    assert sum(p.numel() for p in network.parameters()) == trained + whitening + scales


def test_whitened_patches_are_uncorrelated() -> None:
    images = torch.rand(64, 3, 32, 32).cumsum(-1) / 8
    network = peer.Network()
    network.whiten(images)
    outputs = torch.nn.functional.conv2d(images, network.whitening.weight)[:, :12]
    outputs = outputs.transpose(0, 1).flatten(1)
    moments = outputs @ outputs.T / outputs.shape[1]
    torch.testing.assert_close(moments, torch.diag(moments.diag()), atol=1e-2, rtol=0)
    assert moments.diag().max() == pytest.approx(1, abs=1e-2)


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])
def test_a_step_lowers_the_loss(bf16: bool) -> None:
    images, labels = torch.randn(32, 3, 32, 32), torch.randint(10, (32,))
    network = peer.Network().to(memory_format=torch.channels_last)
    network.whiten(images)
    trainer = peer.Trainer(network, batch_size=32, steps=8, bias_steps=1, bf16=bf16)
    whitening = network.whitening.bias.detach().clone()
    before = trainer.step(images, labels)
    after_one = network.whitening.bias.detach().clone()
    assert not torch.equal(after_one, whitening)
    assert trainer.step(images, labels) < before
    assert torch.equal(network.whitening.bias, after_one)  # The bias is frozen after one step.


@pytest.mark.parametrize("shape", [(64, 216), (216, 64)])
def test_orthogonalized_matrices_have_singular_values_near_1(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    values = left.T @ peer.orthogonalized(matrix) @ right.T
    torch.testing.assert_close(values, torch.diag(values.diag()), atol=1e-4, rtol=0)
    assert 0.6 < values.diag().min() < values.diag().max() < 1.25


def test_batches_are_crops_that_are_mirrored_in_turn() -> None:
    columns = torch.arange(32.0).expand(40, 3, 32, 32)
    labels = torch.arange(40)
    source = peer.batches(columns, labels, 16)
    mirrored = []
    for _ in range(2):  # An epoch has two batches and leaves out eight images.
        epoch = {}
        for images, numbers in (next(source), next(source)):
            assert images.shape == (16, 3, 32, 32)
            assert images.is_contiguous(memory_format=torch.channels_last)
            rising = (images[:, 0, 0, 20] > images[:, 0, 0, 10]).tolist()
            epoch |= dict(zip(numbers.tolist(), rising, strict=True))
        assert len(epoch) == 32
        assert len(set(epoch.values())) == 2
        mirrored.append(epoch)
    first, second = mirrored
    assert all(first[i] != second[i] for i in first.keys() & second.keys())
