"""Embeddings on disk: found again by what they were made from, whole, bounded, shared by processes."""

import errno
import multiprocessing
import os
import signal
import time
from copy import deepcopy

import pytest
import torch
from safetensors.torch import load_file
from small import small_sum

from sumlib.methods.hq_sam import HqSum
from sumlib.model import embedding_cache
from sumlib.model.embedding_cache import (
    EmbeddingCache,
    cache_embeddings,
    encoder_hash,
    first_global_block,
    stop_caching,
)
from sumlib.model.light_encoder import lighten, resize_input


def frozen(seed: int = 0):
    model = small_sum(seed)
    model.sam.image_encoder.requires_grad_(False)
    return model


def images(count: int, size: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def files(folder) -> list:
    return sorted(folder.rglob("*.safetensors"))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float16, 1e-3)])
def test_embeddings_are_made_once_and_are_the_encoders(tmp_path, dtype, tolerance):
    model, pixels = frozen(), images(3)
    plain = model.encode(pixels)
    cache = EmbeddingCache(tmp_path, dtype=dtype)
    cache_embeddings(model.sam.image_encoder, cache)
    first = model.encode(pixels)
    assert first.dtype == torch.float32 and not first.requires_grad
    assert (first - plain).abs().max() < tolerance * plain.abs().max()
    assert (cache.hits, cache.misses, len(files(tmp_path))) == (0, 3, 3)
    again = model.encode(pixels[[2, 0]])
    assert (cache.hits, cache.misses) == (2, 3)
    assert torch.equal(again, first[[2, 0]])  # in any batch, and rounded when made
    other = frozen()
    later = EmbeddingCache(tmp_path, dtype=dtype)
    cache_embeddings(other.sam.image_encoder, later)
    assert torch.equal(other.encode(pixels), first) and later.misses == 0
    stop_caching(model.sam.image_encoder)
    assert torch.equal(model.encode(pixels), plain) and cache.hits == 2


def test_whatever_changes_the_embedding_changes_the_key(tmp_path):
    model, pixels, cache = frozen(), images(1), EmbeddingCache(tmp_path)
    encoder = model.sam.image_encoder
    cache_embeddings(encoder, cache)
    changes = [
        lambda: None,
        lambda: pixels.add_(1e-3),
        lambda: encoder.neck[0].weight.mul_(1.01),
        lambda: encoder.load_state_dict(small_sum(1).sam.image_encoder.state_dict()),
        lambda: setattr(encoder.blocks[0], "window_size", 4),
    ]
    seen = []
    with torch.no_grad():
        for number, change in enumerate(changes, 1):
            change()
            seen.append(model.encode(pixels))
            assert cache.misses == number
            assert torch.equal(model.encode(pixels), seen[-1]) and cache.misses == number
        with torch.autocast("cpu", torch.bfloat16):
            model.encode(pixels)
        assert cache.misses == len(changes) + 1
    assert all(not torch.equal(a, b) for a, b in zip(seen, seen[1:]))


def test_another_input_side_and_a_light_encoder_work_with_it(tmp_path):
    model, cache = frozen(), EmbeddingCache(tmp_path)
    cache_embeddings(model.sam.image_encoder, cache)
    model.encode(images(1))
    resize_input(model.sam, 16)
    lighten(model.sam.image_encoder, checkpointing=True)
    small = model.encode(images(1, 16))
    assert small.shape == (1, 32, 4, 4) and cache.misses == 2
    assert torch.equal(model.encode(images(1, 16)), small) and cache.hits == 1


def test_a_trained_encoder_is_refused(tmp_path):
    model = small_sum()
    cache_embeddings(model.sam.image_encoder, EmbeddingCache(tmp_path))
    with pytest.raises(ValueError, match="cached_embeddings to false"):
        model.encode(images(1))
    with torch.no_grad():  # labelling and evaluation train nothing
        assert model.encode(images(1)).shape == (1, 32, 8, 8)


def test_copies_have_weights_of_their_own(tmp_path):
    model, pixels = frozen(), images(1)
    cache_embeddings(model.sam.image_encoder, EmbeddingCache(tmp_path))
    before, copy = model.encode(pixels), deepcopy(model)
    with torch.no_grad():
        copy.sam.image_encoder.neck[2].weight.neg_()
    assert torch.equal(model.encode(pixels), before)
    assert not torch.equal(copy.encode(pixels), before)


def test_hq_sam_trains_its_fusion_on_cached_features(tmp_path):
    sam, pixels = small_sum().sam, images(2)
    model, encoder = HqSum(sam), sam.image_encoder
    encoder.requires_grad_(False)
    plain = model.encode(pixels)
    plain.square().sum().backward()
    gradient = model.hq.early[0].weight.grad.clone()
    cache = EmbeddingCache(tmp_path, dtype=torch.float32, blocks=(first_global_block(encoder),))
    cache_embeddings(encoder, cache)
    for misses in (2, 2):
        model.zero_grad()
        cached = model.encode(pixels)
        cached.square().sum().backward()
        assert cache.misses == misses
        assert torch.allclose(cached, plain, atol=1e-5)
        assert torch.allclose(model.hq.early[0].weight.grad, gradient, rtol=1e-3, atol=1e-4)


def test_a_hook_that_changes_a_kept_block_is_refused(tmp_path):
    model = frozen()
    encoder = model.sam.image_encoder
    cache_embeddings(encoder, EmbeddingCache(tmp_path, blocks=(0,)))
    encoder.blocks[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    with pytest.raises(ValueError, match="changes the output of encoder block 0"):
        model.encode(images(1))


def test_values_beyond_float16_are_kept_in_float32(tmp_path):
    model, pixels = frozen(), images(1)
    with torch.no_grad():
        model.sam.image_encoder.neck[3].weight.mul_(1e6)
    plain = model.encode(pixels)
    cache_embeddings(model.sam.image_encoder, EmbeddingCache(tmp_path))
    assert plain.abs().max() > 65504 and torch.equal(model.encode(pixels), plain)
    assert load_file(files(tmp_path)[0])["embedding"].dtype == torch.float32


def test_at_the_limit_it_says_so_once_and_goes_on(tmp_path, capsys):
    model, pixels = frozen(), images(6)
    cache = EmbeddingCache(tmp_path, limit_gb=3 * 4300e-9)  # 32 x 8 x 8 x 2 bytes and a header, three times
    cache_embeddings(model.sam.image_encoder, cache)
    first = model.encode(pixels)
    assert torch.equal(model.encode(pixels), first)
    assert len(files(tmp_path)) == 3 and (cache.hits, cache.misses) == (3, 9)
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "full" in said and str(tmp_path) in said and "raise its limit" in said


def test_a_full_disk_is_no_error(tmp_path, capsys, monkeypatch):
    model, pixels = frozen(), images(1)
    cache_embeddings(model.sam.image_encoder, EmbeddingCache(tmp_path))

    def no_space(number):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(embedding_cache.os, "fsync", no_space)
    first = model.encode(pixels)
    assert torch.equal(model.encode(pixels), first)
    assert "No space left on device" in capsys.readouterr().out
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:100], lambda data: data[:-7]])
def test_a_damaged_file_is_made_anew(tmp_path, damage):
    model, pixels, cache = frozen(), images(1), EmbeddingCache(tmp_path)
    cache_embeddings(model.sam.image_encoder, cache)
    first = model.encode(pixels)
    path = files(tmp_path)[0]
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert torch.equal(model.encode(pixels), first) and cache.misses == 2
    assert path.read_bytes() == whole


def test_what_a_killed_process_left_is_removed(tmp_path):
    old, new = tmp_path / "a.tmp", tmp_path / "b.tmp"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    EmbeddingCache(tmp_path)
    assert not old.exists() and new.exists()  # the newer one may be somebody's


def _fill(folder, seed, forever=False):
    torch.set_num_threads(1)
    model = frozen()
    cache_embeddings(model.sam.image_encoder, EmbeddingCache(folder))
    while True:
        model.encode(images(20, seed=seed))
        seed += 1
        if not forever:
            return


def test_processes_share_a_folder_and_may_be_killed(tmp_path):
    model, pixels = frozen(), images(20)
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=_fill, args=(tmp_path, 0)) for _ in range(3)]  # the same images
    victim = fork.Process(target=_fill, args=(tmp_path, 100, True))
    for process in (*writers, victim):
        process.start()
    for process in writers:
        process.join()
        assert process.exitcode == 0
    while len(files(tmp_path)) < 25:
        time.sleep(0.01)
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    assert all(load_file(path)["embedding"].shape == (32, 8, 8) for path in files(tmp_path))
    cache = EmbeddingCache(tmp_path, dtype=torch.float16)
    cache_embeddings(model.sam.image_encoder, cache)
    cached = model.encode(pixels)
    assert cache.misses == 0
    stop_caching(model.sam.image_encoder)
    assert (cached - model.encode(pixels)).abs().max() < 2e-3 * cached.abs().max()


def test_the_hash_is_of_weights_and_settings():
    one, same, other = (small_sum(seed).sam.image_encoder for seed in (0, 0, 1))
    assert encoder_hash(one) == encoder_hash(same) != encoder_hash(other)
    one.img_size = 16
    assert encoder_hash(one) != encoder_hash(same)


def test_other_types_are_refused(tmp_path):
    with pytest.raises(ValueError, match="float16 or float32, not torch.int8"):
        EmbeddingCache(tmp_path, dtype=torch.int8)
