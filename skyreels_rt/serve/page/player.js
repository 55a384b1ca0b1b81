// Plays fragmented MP4 as it arrives, through MediaSource.

const START_SECONDS = 0.3;
const KEEP_SECONDS = 30;

export class Player {
  constructor(video, mimeType, onProblem) {
    const Source = window.ManagedMediaSource || window.MediaSource;
    if (!Source || !Source.isTypeSupported(mimeType)) {
      throw new Error("This browser cannot play H.264 with AAC as it is made.");
    }
    this.video = video;
    this.queue = [];
    this.ending = false;
    this.source = new Source();
    this.onProblem = onProblem;
    video.disableRemotePlayback = true;
    video.src = URL.createObjectURL(this.source);
    this.source.addEventListener("sourceopen", () => {
      URL.revokeObjectURL(video.src);
      this.buffer = this.source.addSourceBuffer(mimeType);
      this.buffer.addEventListener("updateend", () => this.next());
      this.buffer.addEventListener("error", () => onProblem("The video could not be decoded."));
      this.next();
    }, { once: true });
  }

  append(segment) {
    this.queue.push(segment);
    this.next();
  }

  end() {
    this.ending = true;
    this.next();
  }

  // Seconds that are there but were not shown.
  get ahead() {
    const ranges = this.video.buffered;
    return ranges.length ? Math.max(0, ranges.end(ranges.length - 1) - this.video.currentTime) : 0;
  }

  // After an interruption: go to where the next speech will stand, past what was not shown.
  skipTo(seconds) {
    if (this.video.currentTime < seconds) this.video.currentTime = seconds;
  }

  close() {
    this.queue = [];
    this.closed = true;
    this.video.pause();
  }

  next() {
    if (!this.buffer || this.closed || this.buffer.updating || this.source.readyState !== "open") return;
    if (this.video.paused && !this.started && (this.ahead >= START_SECONDS || this.ending)) {
      this.started = true;
      this.video.play().catch(() => this.onProblem("Press Play: the browser did not start the video."));
    }
    const old = this.video.currentTime - KEEP_SECONDS;
    if (old > 0 && this.video.buffered.length && this.video.buffered.start(0) < old - KEEP_SECONDS) {
      this.buffer.remove(0, old);
    } else if (this.queue.length) {
      this.buffer.appendBuffer(this.queue.shift());
    } else if (this.ending) {
      this.source.endOfStream();
    }
  }
}
