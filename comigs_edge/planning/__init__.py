"""What this device, base and text call for: the plan, the processor's rates, the doctor."""
