"""KTO's data: partners of other prompts, mixed batches, no row alone."""

import pytest
import tiny
import torch
from helpers import trainer

import prefopt
from prefopt.core.micro_batch import MicroBatch


def micro_batches(rows: list[dict], batch: int, **options: object) -> list[MicroBatch]:
    run = trainer("kto", rows, args={"per_device_train_batch_size": batch}, **options)
    return list(run.get_train_dataloader())


def in_blocks(n: int) -> list[dict]:
    """n desirable rows followed by n undesirable ones, as a well-known converter of pairs leaves them."""
    rows = tiny.labelled(2 * n)
    return [{**row, "label": i < n} for i, row in enumerate(rows)]


@pytest.mark.parametrize("batch", [4, 8])
@pytest.mark.parametrize("rows", [in_blocks(100), tiny.pairs(100)], ids=["blocks of labelled rows", "pairs"])
def test_every_batch_mixes_desirable_and_undesirable_rows(rows: list[dict], batch: int) -> None:
    for micro_batch in micro_batches(rows, batch):
        desirable = micro_batch.labels["desirable"]
        assert 0 < desirable.sum() < len(desirable)


def test_the_partner_has_another_prompt_also_when_pairs_were_split_into_rows() -> None:
    run = trainer("kto", tiny.pairs(20))
    data = run.train_dataset
    prompts = [example.prompt.tobytes() for example in data.examples]
    assert len(set(prompts)) == 20
    assert len(data) == 40
    assert all(prompts[i] != prompts[partner] for i, partner in enumerate(data.partners))


def test_mismatched_rows_are_the_prompt_followed_by_the_partners_completion() -> None:
    run = trainer("kto", tiny.pairs(6))
    data = run.train_dataset
    batch = data.collate([data[i] for i in range(4)]).mismatched
    for row in range(4):
        prompt, partner = data.examples[row].prompt, data.examples[data.partners[row]].completions[0]
        length = len(prompt) + len(partner)
        assert batch.input_ids[row, :length].tolist() == [*prompt.tolist(), *partner.tolist()]
        assert batch.completion_mask[row].nonzero().flatten().tolist() == list(range(len(prompt), length))


def test_a_remainder_of_one_row_joins_the_batch_before_it() -> None:
    sizes = [batch.num_examples for batch in micro_batches(tiny.labelled(33), 8)]
    assert sizes == [8, 8, 8, 9]
    run = trainer("kto", None, eval_dataset=tiny.labelled(33), args={"per_device_eval_batch_size": 8})
    assert [batch.num_examples for batch in run.get_eval_dataloader()] == [8, 8, 8, 9]


def test_a_step_of_one_row_is_refused_with_the_remedy() -> None:
    with pytest.raises(prefopt.core.errors.UsageError, match="or gradient_accumulation_steps to 2 or more"):
        trainer("kto", tiny.labelled(8), args={"per_device_train_batch_size": 1})


def test_rows_of_one_prompt_alone_are_refused() -> None:
    rows = [{**row, "prompt": "a b c "} for row in tiny.labelled(8)]
    with pytest.raises(prefopt.core.errors.DataError, match="all rows share one prompt"):
        trainer("kto", rows)


def test_z0_is_the_clamped_mean_over_mismatched_rows_of_the_step() -> None:
    """Recomputed here with plain forwards, one row at a time."""
    reference = tiny.model(1)
    run = trainer("kto", tiny.labelled(4), reference=reference, args={"max_steps": 1})
    data, policy = run.train_dataset, tiny.model(0)

    def logp(model: torch.nn.Module, row: int) -> float:
        prompt, partner = data.examples[row].prompt, data.examples[data.partners[row]].completions[0]
        ids = torch.tensor([[*prompt.tolist(), *partner.tolist()]])
        logps = model(ids).logits.log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None])
        return logps[len(prompt) - 1 :].sum().item()

    expected = max(0.0, sum(logp(policy, row) - logp(reference, row) for row in range(4)) / 4)
    run.train()
    assert expected > 0
    assert run.state.log_history[0]["kl"] == pytest.approx(expected, rel=1e-4)
