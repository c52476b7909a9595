"""The state of a GPU around a measurement: clocks, temperature, power, and why it is slowed down."""

import subprocess

FIELDS = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw")
# Newer drivers have another name for the reasons.
REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
# Of the bit mask, what matters; gpu_idle and the settings of applications do not slow a running kernel down.
NAMES = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}


def reasons(mask: str) -> list[str]:
    """What slows the GPU down, from nvidia-smi's bit mask."""
    try:
        bits = int(mask, 16)
    except ValueError:
        return [f"unknown: {mask}"]
    return [name for bit, name in NAMES.items() if bits & bit]


def state() -> dict[str, object]:
    """What nvidia-smi says of the first GPU now; says why where it says nothing."""
    for reason in REASONS:
        command = ["nvidia-smi", "--id=0", f"--query-gpu={','.join(FIELDS)},{reason}", "--format=csv,noheader,nounits"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.SubprocessError) as failure:
            return {"unknown": f"{type(failure).__name__}: {failure}"}
        values = [value.strip() for value in done.stdout.strip().split(",")]
        if done.returncode == 0 and len(values) == len(FIELDS) + 1:
            return {**dict(zip(FIELDS, values[:-1], strict=True)), "slowed by": reasons(values[-1])}
    return {"unknown": (done.stderr or done.stdout).strip()[:200]}
