"""The reader of the compiler's bundles on a schedule written by hand, and the kernels' own schedules."""

import importlib.util

import pytest

from qwenlong_jax.kernels import schedule
from qwenlong_jax.kernels.prefix_decode import benchmark as prefix_decode
from qwenlong_jax.kernels.schedule import Body, Chip, Transfer

CHIP = Chip("none", bfloat16=4, float32=2, peak=100, memory=10)


def bundles(*texts):
  return "\n".join(f"  0x{i:x}  : > {{ {text} }}" for i, text in enumerate(texts)) + "\n"


PRODUCT = "%1 = vmatmul.bf16.mxu0"
WAIT = ["nop"] * 4  # delay slots
# A loop of a step with two bodies, of two and of three products, and a branch without any (a block's last step).
LOOP = bundles(
  "Start region 1", "nop",
  "sbr.rel target = $region2", *WAIT, PRODUCT, PRODUCT,
  "Start region 2", "sbr.rel target = $region3", *WAIT, PRODUCT, PRODUCT, PRODUCT,
  "Start region 3", "sbr.rel target = $region4", *WAIT, "nop", "nop", "nop",
  "Start region 4", "sbr.rel target = $region1", *WAIT,
)  # fmt: skip


def test_each_body_is_replayed_and_the_rest_of_the_step_is_its_overhead(tmp_path):
  """Two products of 4 cycles on one unit with a queue of two never wait; nor do three. By hand: a step has 28 bundles
  without the bodies' 5 and the last step's 3."""
  path = tmp_path / "1-kernel-final_bundles.txt"
  path.write_text(LOOP)
  short, long = schedule.read(path, CHIP)
  assert (short.cycles, long.cycles) == (2, 3)
  assert short.overhead == long.overhead == LOOP.count("\n") - 5 - 3


def test_a_product_waits_for_its_unit():
  """Bundle 4 finds the unit taken until cycle 13 = 1 + 3 * 4 and two products queued: it runs at 13 - 2 * 4 = 5."""
  assert schedule._replay([PRODUCT] * 4, CHIP) == 5
  assert schedule._replay([PRODUCT, "%2 = vmatmul.bf16.mxu1"] * 4, CHIP) == 8
  assert schedule._replay(["%1 = vmatmul.f32.mxu0"] * 4, CHIP) == 4


def test_the_bound_is_the_ideal_over_the_step():
  assert Body(cycles=90, overhead=10).utilisation(flops=5000, chip=CHIP) == 0.5


def test_a_file_without_products_is_refused(tmp_path):
  path = tmp_path / "x-final_bundles.txt"
  path.write_text(bundles("Start region 1", "sbr.rel target = $region1", *WAIT))
  with pytest.raises(ValueError, match=r"x-final_bundles.txt: no loop with matrix products"):
    schedule.read(path, CHIP)


HLO = """
%loop (x: f32[4]) -> f32[4] {
  %collective-permute-start.1 = (bf16[4]{0}, bf16[4]{0}, u32[]) collective-permute-start(%x), metadata={op_name="while/ppermute"}
  %collective-permute-start.2 = (f32[2]{0}, f32[2]{0}, u32[]) collective-permute-start(%y), metadata={op_name="while/ppermute"}
  %collective-permute-done.2 = f32[2]{0} collective-permute-done(%collective-permute-start.2)
  %kernel.7 = f32[4]{0} custom-call(%y), custom_call_target="tpu_custom_call"
  %collective-permute-done.1 = bf16[4]{0} collective-permute-done(%collective-permute-start.1)
  %kernel.8 = f32[4]{0} custom-call(%y), custom_call_target="tpu_custom_call"
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %collective-permute-start.3 = (f32[8]{0}, f32[8]{0}, u32[]) collective-permute-start(%x), metadata={op_name="psum"}
  %collective-permute-done.3 = f32[8]{0} collective-permute-done(%collective-permute-start.3)
  ROOT %collective-permute.4 = f32[3]{0} collective-permute(%x), metadata={op_name="main/ppermute"}
}
"""  # noqa: E501


def test_a_transfer_is_hidden_by_the_kernels_between_its_start_and_its_end():
  """The first is, by one of two kernels; the second ends before they run; the third is not the ring's; the last can't
  be, since it is one instruction."""
  assert schedule.transfers(HLO) == [
    Transfer("loop", "bf16[4]", ("kernel",)),
    Transfer("loop", "f32[2]", ()),
    Transfer("ENTRY", "f32[3]", ()),
  ]


needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU compiler, is not installed: pip install libtpu"
)


@needs_libtpu
@pytest.mark.parametrize(
  "chip, forward, backward",
  [
    pytest.param("v5p", 0.9, 0.975, marks=pytest.mark.slow),
    pytest.param("v5e", 0.9, 0.98, marks=pytest.mark.slow),
    pytest.param("v6e", 0.42, 0.468, marks=pytest.mark.slow),  # of at most 0.5: 128 of its 256 columns
  ],
)
def test_flash_attention_keeps_the_mxu_busy(chip, forward, backward):
  """Compiles both kernels for the chip. The bounds are above what splash attention and tokamax reach there; the body
  with mask is within 5% of the one without."""
  found = schedule.bounds("qwenlong_jax.kernels.flash_attention.benchmark", "ours", chip)
  print(chip, found)
  for name, least in (("flash_attention_forward", forward), ("flash_attention_backward", backward)):
    unmasked, masked = found[name]
    assert unmasked > least
    assert masked > 0.95 * unmasked


@needs_libtpu
@pytest.mark.parametrize(
  "chip", ["v5p", pytest.param("v5e", marks=pytest.mark.slow), pytest.param("v6e", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("case", ["prefix", "suffix"])
def test_prefix_decode_computes_less_than_its_keys_and_values_take_to_arrive(chip, case):
  """Compiles the kernel for the chip. Both bodies, of whole blocks and of a row's last one."""
  steps = schedule.steps("qwenlong_jax.kernels.prefix_decode.benchmark", case, chip)["prefix_decode"]
  transfer = prefix_decode.bytes_of_a_step(case) / schedule.CHIPS[chip].memory
  print(chip, case, steps, f"{transfer:.0f}")
  assert len(steps) == 2
  assert max(steps) < transfer


@needs_libtpu
def test_what_does_not_compile_says_why():
  with pytest.raises(RuntimeError, match="KeyError: 'nobody'"):
    schedule.bounds("qwenlong_jax.kernels.flash_attention.benchmark", "nobody", "v5p")
