// The protocol of /v1/stream: one socket, one session.

const WORDS = {
  unauthorized: "The server asks for a token: open More and enter it.",
  busy: "The server is busy. Try again in a while.",
  forbidden_origin: "The server does not accept this page's address.",
};

export class Stream {
  // handlers: started(event), segment(buffer), progress(event), interrupted(event), ended(event),
  // failed(words)
  constructor(options, picture, handlers) {
    const address = new URL("v1/stream", document.baseURI);
    address.protocol = address.protocol.replace("http", "ws");
    this.handlers = handlers;
    this.socket = new WebSocket(address);
    this.socket.binaryType = "arraybuffer";
    this.socket.onopen = () => {
      this.command({ type: "start", ...options });
      if (picture) this.socket.send(picture);
    };
    this.socket.onmessage = (message) => this.hear(message.data);
    this.socket.onclose = (event) => this.finish(WORDS[event.reason]
      || (this.begun ? "The connection was lost." : "The server cannot be reached, or refuses this page."));
  }

  send(pcm) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(pcm);
  }

  command(command) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(command));
  }

  close() {
    this.over = true;
    this.socket.close();
  }

  hear(data) {
    if (this.over) return;
    if (typeof data !== "string") {
      this.handlers.segment(data);
      return;
    }
    const event = JSON.parse(data);
    if (event.type === "error") {
      this.finish(WORDS[event.code] || [event.message, event.hint].filter(Boolean).join(" "));
      return;
    }
    this.begun = true;
    if (event.type === "ended") this.over = true;
    this.handlers[event.type](event);
  }

  finish(words) {
    if (this.over) return;
    this.over = true;
    this.handlers.failed(words);
  }
}
