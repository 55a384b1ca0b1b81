// AudioWorklet: what the microphone gives, as signed 16-bit samples in blocks of 1024.
class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.block = new Int16Array(1024);
    this.filled = 0;
  }

  process(inputs) {
    const channel = inputs[0][0];
    if (!channel) return true;
    for (const sample of channel) {
      const level = Math.max(-1, Math.min(1, sample));
      this.block[this.filled++] = Math.round(level * 32767);
      if (this.filled === this.block.length) {
        this.port.postMessage(this.block.buffer, [this.block.buffer]);
        this.block = new Int16Array(1024);
        this.filled = 0;
      }
    }
    return true;
  }
}

registerProcessor("capture", Capture);
