// Where speech comes from: the microphone, or a file at the pace of speech.
// Both have a sampleRate, start(send, end) and stop().

const FILE_RATE = 16000;
const BLOCK_SECONDS = 0.1;
const AHEAD_SECONDS = 4;
const RATES = [48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000];

export class Microphone {
  static async open() {
    if (!navigator.mediaDevices) throw new Error("The microphone needs https or this machine itself.");
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({
        audio: { channelCount: 1, echoCancellation: true, noiseSuppression: true },
      });
    } catch (error) {
      throw new Error("The microphone cannot be used: allow it in the browser, or play a recording.");
    }
    try {
      return await Microphone.over(stream);
    } catch (error) {
      for (const track of stream.getTracks()) track.stop();
      throw new Error("The microphone's sound cannot be read in this browser.");
    }
  }

  static async over(stream) {
    let context;
    let source;
    try {
      context = new AudioContext({ sampleRate: FILE_RATE });
      source = context.createMediaStreamSource(stream);
    } catch (error) {
      // Some browsers want the microphone's own rate.
      if (context) await context.close();
      context = new AudioContext();
      source = context.createMediaStreamSource(stream);
    }
    if (!RATES.includes(context.sampleRate)) throw new Error("rate");
    await context.audioWorklet.addModule("capture.js");
    return new Microphone(stream, context, source);
  }

  constructor(stream, context, source) {
    this.stream = stream;
    this.context = context;
    this.source = source;
    this.sampleRate = context.sampleRate;
    this.isLive = true;
  }

  start(send) {
    this.node = new AudioWorkletNode(this.context, "capture", { numberOfOutputs: 0 });
    this.node.port.onmessage = (event) => send(event.data);
    this.source.connect(this.node);
    this.context.resume();
  }

  stop() {
    if (this.node) {
      this.node.port.onmessage = null; // a busy page has blocks in its queue still: too late now
      this.node.disconnect();
    }
    this.source.disconnect();
    for (const track of this.stream.getTracks()) track.stop();
    if (this.context.state !== "closed") this.context.close();
  }
}

export class Recording {
  static async open(file) {
    const data = await file.arrayBuffer();
    let sound;
    try {
      // A context of that rate decodes to it, whatever the file's own rate is.
      sound = await new OfflineAudioContext(1, 1, FILE_RATE).decodeAudioData(data);
    } catch (error) {
      throw new Error("This file holds no sound that the browser can decode.");
    }
    return new Recording(sound);
  }

  constructor(sound) {
    this.sampleRate = sound.sampleRate;
    this.isLive = false;
    this.samples = new Int16Array(sound.length);
    const channels = [];
    for (let n = 0; n < sound.numberOfChannels; n++) channels.push(sound.getChannelData(n));
    for (let i = 0; i < sound.length; i++) {
      let sum = 0;
      for (const channel of channels) sum += channel[i];
      const level = Math.max(-1, Math.min(1, sum / channels.length));
      this.samples[i] = Math.round(level * 32767);
    }
  }

  start(send, end) {
    const block = Math.round(this.sampleRate * BLOCK_SECONDS);
    const started = performance.now();
    let sent = 0;
    const step = () => {
      const spoken = (performance.now() - started) / 1000 + AHEAD_SECONDS;
      while (sent < this.samples.length && sent < spoken * this.sampleRate) {
        send(this.samples.slice(sent, sent + block).buffer);
        sent += block;
      }
      if (sent < this.samples.length) return;
      this.stop();
      end();
    };
    this.timer = setInterval(step, 50);
    step();
  }

  stop() {
    clearInterval(this.timer);
  }
}
