"""Prompts by hand, and one batch of mixed kinds that is SAM's for each kind."""

import pytest
import torch
from small import small_sum

from sumlib.model.prompts import BACKGROUND, FOREGROUND, PADDING, Prompts
from sumlib.model.rounds import best_of, interactive_rounds

POINTS, BOXES = torch.tensor([[[5, 7]], [[40, 20]]]), torch.tensor([[2.0, 3, 30, 40], [10, 12, 50, 60]])


def test_codes_and_places_by_hand():
    clicks = Prompts.from_points(POINTS)
    assert clicks.xy.tolist() == [[[5, 7], [0, 0]], [[40, 20], [0, 0]]] and clicks.xy.dtype == torch.float32
    assert clicks.codes.tolist() == [[FOREGROUND, PADDING]] * 2 and clicks.codes.dtype == torch.int64
    labels = torch.tensor([[FOREGROUND], [BACKGROUND]])
    assert Prompts.from_points(POINTS, labels).codes.tolist() == [[1, -1], [0, -1]]
    boxes = Prompts.from_boxes(BOXES)
    assert boxes.xy.flatten(1).tolist() == BOXES.tolist() and boxes.codes.tolist() == [[2, 3]] * 2
    both = Prompts.from_boxes(BOXES, POINTS)
    assert both.codes.tolist() == [[1, 2, 3]] * 2 and both.xy[:, 0].tolist() == POINTS[:, 0].tolist()
    assert Prompts.nothing(3).codes.tolist() == [[-1]] * 3 and len(Prompts.nothing(3)) == 3
    more = clicks.add(POINTS[:, 0] + 1, torch.tensor([0, -1]))
    assert more.codes.tolist() == [[1, -1, 0], [1, -1, -1]] and more.xy[0, 2].tolist() == [6, 8]
    mixed = Prompts.where(torch.tensor([True, False]), boxes, clicks)
    assert mixed.codes.tolist() == [[2, 3], [1, -1]] and mixed.xy[1, 0].tolist() == [40, 20]
    assert mixed.to("meta").xy.is_meta and mixed.to("meta").codes.is_meta


def test_a_mixed_batch_is_decoded_as_each_kind_alone():
    model = small_sum(4)
    size = model.sam.prompt_encoder.image_embedding_size
    shape = (2, model.sam.prompt_encoder.embed_dim, *size)
    embeddings = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    prompts = Prompts.where(
        torch.tensor([True, False]), Prompts.from_boxes(BOXES), Prompts.from_points(POINTS)
    )
    with torch.no_grad():
        low, score = model.decode_codes(embeddings, prompts.xy, prompts.codes)
        box = model.decode(embeddings[:1], boxes=BOXES[:1])
        point = model.decode(embeddings[1:], points=POINTS[1:].float(), labels=torch.ones(1, 1))
    for k, (masks, iou) in enumerate((box, point)):
        assert torch.allclose(low[k], masks[0], atol=1e-4) and torch.allclose(score[k], iou[0], atol=1e-4)


def outputs(number: int, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Four outputs of 1 x 2 pixels for two masks; which ones are positive depends on the round."""
    logits = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]]) * (1 if number == 0 else -1)
    return (weight * logits).view(1, 4, 1, 2).expand(2, -1, -1, -1), torch.arange(8.0).view(2, 4)


@pytest.mark.parametrize("several", [True, False])
def test_rounds_by_hand(several):
    weight, seen = torch.ones((), requires_grad=True), []

    def decode(prompts, shown, number):
        seen.append((prompts.codes.shape[1], None if shown is None else shown.flatten(1).tolist()))
        return outputs(number, weight)

    def more(turn):
        return turn.prompts.add(torch.zeros(2, 2), turn.mask.flatten(1)[:, 0].long())

    target = torch.tensor([[[True, True]], [[False, True]]])
    turns = []
    for turn in interactive_rounds(decode, Prompts.from_points(POINTS), 3, more, several=several):
        best, iou = best_of(turn.logits > 0, target)
        assert iou.shape == (2, 3 if several and turn.number == 0 else 1)
        turn.take(best, (turn.logits > 0)[torch.arange(2), best])
        assert turn.all_logits.requires_grad and not turn.shown.requires_grad
        turns.append((turn.number, best.tolist(), turn.prompts.codes[:, 2:].tolist()))
    first = [[1.0, 1.0], [-1.0, 1.0]] if several else [[-1.0, -1.0]] * 2  # logits of the answers of round 1
    assert seen == [(2, None), (3, first), (4, [[1.0, 1.0]] * 2)]
    code = [1, 0] if several else [0, 0]
    assert turns == [
        (0, [1, 2] if several else [0, 0], [[], []]),
        (1, [0, 0], [[c] for c in code]),
        (2, [0, 0], [[c, 1] for c in code]),
    ]
