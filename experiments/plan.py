"""What an experiment takes on a TPU slice that is not at hand: memory, time, chip-hours; compiled, not run.

  python experiments/plan.py --config=aepo_256k.py --topology=v5p:4x4x4
  python experiments/plan.py --config=aepo_256k.py --topology=v6e:16x16 --config.mesh.ring=64 --stage=rl1
  python experiments/plan.py --config=aepo_256k.py --topology=v5p:4x4x4 --sweep

libtpu's compiler, which needs no TPU, compiles the real programs of a step with the longest rows of a stage (by default
the longest stage). Memory and what is hidden are the compiler's word. Times are those of the resource that bounds a
phase, at the --use of its peak: what nobody has measured. A few minutes on two cores; nothing of the model is created.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import run
from absl import app, flags
from ml_collections import config_flags

if TYPE_CHECKING:
  from qwenlong_jax.stages.plan import Plan

TOPOLOGY = flags.DEFINE_string("topology", None, "chip and grid of the slice, such as v5p:4x4x4", required=True)
STAGE = flags.DEFINE_string("stage", "", "of the config; by default the one with the longest rows")
SWEEP = flags.DEFINE_bool("sweep", False, "try all rings, the one that is fastest by the times below first")
USE = flags.DEFINE_list("use", ["0.5", "0.8", "0.8"], "assumed fractions of the peaks: arithmetic, memory, links")
OUT = flags.DEFINE_string("out", None, "folder of plan.json and plan.png; by default plans/<config>-<topology>")


def main(_: list[str]) -> int:
  import jax

  from qwenlong_jax.kernels.schedule import ENVIRONMENT

  jax.config.update("jax_platforms", "cpu")
  os.environ |= ENVIRONMENT
  from qwenlong_jax.stages import plan

  config = run.CONFIG.value
  try:
    if len(USE.value) != 3:
      raise ValueError(f"--use={','.join(USE.value)} must be three fractions: arithmetic, memory, links")
    use = plan.Use(*(float(part) for part in USE.value))
    found = plan.plan(config, TOPOLOGY.value, STAGE.value, use, sweep=SWEEP.value)
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  name = run.default_workdir(config_flags.get_config_filename(flags.FLAGS["config"])).name
  out = Path(OUT.value or f"plans/{name}-{TOPOLOGY.value.replace(':', '-')}")
  out.mkdir(parents=True, exist_ok=True)
  (out / "plan.json").write_text(json.dumps(dataclasses.asdict(found), indent=2) + "\n", encoding="utf-8")
  draw(found, out / "plan.png")
  print(table(found))
  print(f"\n{out / 'plan.json'}, {out / 'plan.png'}")
  return 0 if found.fits else 2


def table(found: "Plan") -> str:
  """The plan in words."""
  load, lines = found.load, []
  lines.append(
    f"{found.topology}: {found.chips} chips as {found.data} rings of {found.ring}; stage {found.stage}: {load.prompts} "
    f"prompts of {load.prompt:,} tokens, {load.group} responses of {load.response:,}; rows of {load.slots:,} slots; "
    f"{load.lanes} groups at once on a ring"
  )
  lines += ["", f"memory of a chip, GiB of the {found.hbm:.1f} that the compiler grants"]
  for program in found.programs:
    if program.refused:
      lines.append(f"  {program.name:10} more than that")
      continue
    kinds = ", ".join(f"{kind} {size:.1f}" for kind, size in program.kinds.items())
    lines.append(f"  {program.name:10} {program.total:6.1f}  {100 * program.total / found.hbm:4.0f}%  {kinds}")
  lines += ["", "compiled"]
  for program in found.programs:
    lines.append(
      f"  {program.name:10} in {program.compiled_in:4.0f} s; transfers of the ring hidden: {program.hidden} of "
      f"{program.transfers}; gathers asynchronous: {program.asynchronous} of {program.gathers}"
    )
  use = found.use
  lines += [
    "",
    f"a step at {100 * use.arithmetic:.0f}% of the arithmetic's peak, {100 * use.memory:.0f}% of the memory's, "
    f"{100 * use.links:.0f}% of the links' (assumed)",
  ]
  for phase in found.times:
    by = ", ".join(f"{name} {seconds:.3g}" for name, seconds in phase.by.items() if seconds)
    lines.append(f"  {phase.name:10} {phase.seconds:9.1f} s, bound by {phase.bound:10} ({by})")
  tokens = load.prompts * (load.prompt + load.group * load.response)
  hours = found.step_seconds * found.chips / 3600
  learned = found.times[-1].flops
  lines += [
    f"  {'together':10} {found.step_seconds:9.1f} s: {tokens / found.step_seconds:,.0f} tokens a second, "
    f"{hours:.1f} chip-hours; {found.steps} steps of this stage: {found.steps * hours:,.0f} chip-hours",
  ]
  if found.examples:
    choosing = found.choosing_seconds * found.chips / 3600
    lines.append(f"  before it: choosing among up to {found.examples:,} examples, {choosing:,.0f} chip-hours")
  lines += [
    "",
    f"sharing prompts: learning takes {learned / 1e18:.2f} EFLOP instead of {found.repeated_flops / 1e18:.2f} "
    f"({found.repeated_flops / learned:.1f} times as many); a decode step reads {found.repeated_bytes:.1f} times less "
    "of the caches",
  ]
  return "\n".join([*lines, "", *found.advice] if found.advice else lines)


def draw(found: "Plan", path: Path) -> None:
  """Memory by kind and seconds by phase."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(10, 4), layout="constrained")
  memory, seconds = figure.subplots(1, 2)
  names = [program.name for program in found.programs]
  below = [0.0] * len(names)
  for kind in dict.fromkeys(kind for program in found.programs for kind in program.kinds):
    sizes = [program.kinds.get(kind, 0.0) for program in found.programs]
    memory.barh(names, sizes, left=below, label=kind)
    below = [a + b for a, b in zip(below, sizes)]
  memory.axvline(found.hbm, color="black", label="what the compiler grants")
  memory.set(xlabel="GiB of a chip", title=f"{found.topology}, ring {found.ring}, stage {found.stage}")
  memory.legend(fontsize="small")
  bars = seconds.barh([phase.name for phase in found.times], [phase.seconds for phase in found.times])
  seconds.bar_label(bars, [f" {phase.seconds:.0f} s, {phase.bound}" for phase in found.times])
  seconds.set(xlabel="seconds of a step, by the assumed use of the peaks")
  seconds.margins(x=0.35)
  for axis in (memory, seconds):
    axis.invert_yaxis()
  figure.savefig(path, dpi=150)


if __name__ == "__main__":
  app.run(main, flags_parser=run.parse_flags)
