// The page: what is chosen, what state the stream is in, what it says.

import { Player } from "./player.js";
import { Stream } from "./stream.js";
import { Microphone, Recording } from "./voice.js";

const find = (id) => document.getElementById(id);
const video = find("video");
const still = find("still");

let portraits = [];
let picture = null; // a picture of the user's own
let maxImageBytes = Infinity;
let run = null; // what is going on: voice, stream, player

function say(state, words) {
  find("status").dataset.state = state;
  find("words").textContent = words;
  document.body.dataset.state = state;
}

function complain(words) {
  find("problem").textContent = words;
  find("problem").hidden = !words;
  if (words) say("failed", "Stopped.");
}

function seconds(value) {
  return value === null || value === undefined ? "–" : `${value.toFixed(2)} s`;
}

function showFigures(event) {
  find("latency").textContent = seconds(event.latency_s);
  find("rtf").textContent = event.rtf ? event.rtf.toFixed(2) : "–";
  find("made").textContent = `${event.seconds.toFixed(1)} s`;
}

function setBusy(busy) {
  find("speak").disabled = busy;
  find("file").disabled = busy;
  document.querySelector("label[for=file]").classList.toggle("off", busy);
  find("interrupt").disabled = find("stop").disabled = !busy;
  find("sound").hidden = !busy;
}

function setSound(on) {
  video.muted = !on;
  find("sound").setAttribute("aria-pressed", String(on));
  find("sound").textContent = on ? "Sound on" : "Sound off";
}

function release() {
  if (!run) return;
  run.voice.stop();
  run.stream.close();
  clearInterval(run.timer);
  run = null;
  setBusy(false);
}

function handlersOf(own, voice) {
  const fail = (words) => {
    if (run !== own) return;
    if (own.player) own.player.close();
    release();
    complain(words);
  };
  const send = (pcm) => own.stream.send(pcm);
  return {
    started(event) {
      try {
        own.player = new Player(video, event.mime_type, fail);
      } catch (error) {
        fail(error.message);
        return;
      }
      say("listening", `Listening. The first frames need ${event.first_frames_need_s.toFixed(1)} s of speech.`);
      voice.start(send, () => own.stream.command({ type: "end_audio" }));
    },
    segment: (data) => own.player && own.player.append(data),
    progress(event) {
      still.hidden = true;
      if (document.body.dataset.state !== "speaking") say("speaking", "Speaking.");
      showFigures(event);
    },
    interrupted(event) {
      own.player.skipTo(event.seconds);
      say("listening", `Interrupted after ${event.seconds.toFixed(2)} s.`);
      if (!voice.isLive) {
        own.player.end();
        release();
        say("done", `Interrupted after ${event.seconds.toFixed(2)} s.`);
      }
    },
    ended(event) {
      still.hidden = true;
      showFigures(event);
      own.player.end();
      release();
      say("done", `Done: ${event.frames} frames, ${event.seconds.toFixed(1)} s.`);
    },
    failed: fail,
  };
}

async function start(openVoice) {
  complain("");
  setBusy(true);
  say("connecting", "Connecting …");
  let voice;
  try {
    voice = await openVoice();
  } catch (error) {
    setBusy(false);
    complain(error.message);
    return;
  }
  const chosen = document.querySelector("input[name=face]:checked");
  const options = { sample_rate: voice.sampleRate, prompt: find("prompt").value.trim() };
  if (find("token").value) options.token = find("token").value;
  if (picture) options.image_bytes = picture.size;
  else if (chosen) options.portrait = chosen.value;
  still.hidden = false;
  const own = { voice };
  run = own;
  // Someone who speaks does not want to hear the own voice again, late.
  setSound(!voice.isLive);
  own.stream = new Stream(options, picture, handlersOf(own, voice));
  own.timer = setInterval(() => {
    find("ahead").textContent = own.player ? seconds(own.player.ahead) : "–";
  }, 250);
}

function stop() {
  if (!run) return;
  run.voice.stop();
  const spoke = Boolean(run.player && run.player.started);
  if (spoke) {
    run.stream.command({ type: "end_audio" });
    say("speaking", "Finishing …");
    find("interrupt").disabled = find("stop").disabled = true;
  } else {
    release();
    say("idle", "Stopped.");
  }
}

function choose(url) {
  still.src = url;
  still.hidden = false;
}

function offerFaces() {
  for (const [index, portrait] of portraits.entries()) {
    const label = document.createElement("label");
    const input = Object.assign(document.createElement("input"), {
      type: "radio", name: "face", value: portrait.name, checked: index === 0,
    });
    input.setAttribute("aria-label", portrait.name);
    const image = Object.assign(document.createElement("img"), { src: portrait.url, alt: "" });
    input.addEventListener("change", () => {
      picture = null;
      choose(portrait.url);
    });
    label.append(input, image);
    find("faces").append(label);
  }
  if (portraits.length) choose(portraits[0].url);
}

function usePicture(file) {
  if (!file) return;
  if (file.size > maxImageBytes) {
    complain(`That picture is larger than ${(maxImageBytes / 2 ** 20).toFixed(0)} MiB. Choose a smaller one.`);
    return;
  }
  complain("");
  picture = file;
  for (const input of document.querySelectorAll("input[name=face]")) input.checked = false;
  choose(URL.createObjectURL(file));
  say("idle", "Ready.");
}

find("speak").addEventListener("click", () => start(() => Microphone.open()));
find("file").addEventListener("change", (event) => {
  const file = event.target.files[0];
  event.target.value = "";
  if (file) start(() => Recording.open(file));
});
find("picture").addEventListener("change", (event) => usePicture(event.target.files[0]));
find("interrupt").addEventListener("click", () => {
  if (!run) return;
  if (!run.voice.isLive) run.voice.stop();
  run.stream.command({ type: "interrupt" });
});
find("stop").addEventListener("click", stop);
find("sound").addEventListener("click", () => setSound(video.muted));

try {
  const answer = await (await fetch("v1/portraits")).json();
  portraits = answer.portraits;
  maxImageBytes = answer.max_image_bytes;
  document.querySelector("details").open = answer.needs_token;
  offerFaces();
} catch (error) {
  complain("The server cannot be reached. Reload the page.");
}
