"use strict";
// Where chunks lie on the sky, the Mollweide projection, and what else the map needs that knows nothing of the page.

const RAD = Math.PI / 180;
const ROOT2 = Math.SQRT2;
const wrap = (ra) => ((ra % 360) + 360) % 360;
/** An angle from -180 to 180 degrees. */
const around = (angle) => wrap(angle + 180) - 180;

// Mollweide: x = 2√2/π · λ · cos θ, y = √2 · sin θ, with 2θ + sin 2θ = π sin δ.

/** θ of a declination, by Newton's method. */
function thetaOf(dec) {
  if (Math.abs(dec) > 89.99) return (Math.sign(dec) * Math.PI) / 2;
  const goal = Math.PI * Math.sin(dec * RAD);
  let theta = dec * RAD;
  for (let i = 0; i < 12; i += 1) {
    const step = (2 * theta + Math.sin(2 * theta) - goal) / (2 + 2 * Math.cos(2 * theta));
    theta -= step;
    if (Math.abs(step) < 1e-9) break;
  }
  return theta;
}
const decAt = (theta) => Math.asin(Math.max(-1, Math.min(1, (2 * theta + Math.sin(2 * theta)) / Math.PI))) / RAD;
/** Half the width of the sky at an angle θ. */
const halfWidth = (theta) => 2 * ROOT2 * Math.cos(theta);

/** The galactic plane at a longitude l: its pole is at RA 192.85948, Dec 27.12825 (J2000); l of the celestial pole is 122.93192. */
function galacticPlane(l) {
  const angle = (122.93192 - l) * RAD;
  const pole = 27.12825 * RAD;
  const ra = 192.85948 + Math.atan2(Math.sin(angle), -Math.sin(pole) * Math.cos(angle)) / RAD;
  return [wrap(ra), Math.asin(Math.cos(pole) * Math.cos(angle)) / RAD];
}

/** The partitioning. A slot is the place of a chunk among all of the sky, chosen or not. */
class Grid {
  constructor(partitioning) {
    this.counts = Int32Array.from(partitioning.chunks_in_stripe);
    this.stripes = this.counts.length;
    this.height = 180 / this.stripes;
    this.offsets = new Int32Array(this.stripes + 1);
    this.counts.forEach((count, stripe) => {
      this.offsets[stripe + 1] = this.offsets[stripe] + count;
    });
    this.size = this.offsets[this.stripes];
  }

  /** The slot of a chunk; -1 if there is no such chunk. */
  slot(chunk) {
    const stripe = Math.floor(chunk / (2 * this.stripes));
    const place = chunk % (2 * this.stripes);
    return stripe < this.stripes && place < this.counts[stripe] ? this.offsets[stripe] + place : -1;
  }

  slotAt(ra, dec) {
    const stripe = Math.min(this.stripes - 1, Math.max(0, Math.floor((dec + 90) / this.height)));
    const place = Math.floor((wrap(ra) / 360) * this.counts[stripe]);
    return this.offsets[stripe] + Math.min(this.counts[stripe] - 1, place);
  }

  /** Bounds in degrees: ra to ra + width, dec to top. */
  box(chunk) {
    const stripe = Math.floor(chunk / (2 * this.stripes));
    const width = 360 / this.counts[stripe];
    const dec = stripe * this.height - 90;
    return { ra: (chunk % (2 * this.stripes)) * width, width, dec, top: dec + this.height };
  }

  centre(chunk) {
    const box = this.box(chunk);
    return [box.ra + box.width / 2, (box.dec + box.top) / 2];
  }

  /** Square degrees. */
  area(chunk) {
    const box = this.box(chunk);
    return (box.width * (Math.sin(box.top * RAD) - Math.sin(box.dec * RAD))) / RAD;
  }
}

/** Numbers that were packed as text: deflated, in base64. */
async function unpack(packed) {
  const types = { i1: Int8Array, i2: Int16Array, i4: Int32Array, f8: Float64Array };
  const text = atob(packed.data);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i += 1) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new types[packed.type](await new Response(stream).arrayBuffer());
}

async function unpackAll(parts) {
  const entries = Object.entries(parts).map(async ([name, packed]) => [name, await unpack(packed)]);
  return Object.fromEntries(await Promise.all(entries));
}

/** The ids of "0:1,400:405". */
function expandRanges(text) {
  const ids = [];
  for (const part of text.split(",").filter(Boolean)) {
    const [low, high] = part.split(":").map(Number);
    for (let id = low; id <= (high ?? low); id += 1) ids.push(id);
  }
  return Float64Array.from(ids);
}

// Colours.

const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
const mix = (a, b, share) => a.map((value, i) => Math.round(value + (b[i] - value) * share));
/** A colour as four bytes of a picture. */
const pixel = ([r, g, b]) => (255 << 24) | (b << 16) | (g << 8) | r;

// From blue to yellow, evenly brighter: told apart with every kind of colour vision, and in grey.
const STOPS = ["#1d3c7c", "#42598c", "#66748f", "#8b8f86", "#b4ac72", "#dcca55", "#fbe93c"].map(rgb);
const RAMP = Array.from({ length: 256 }, (_, i) => {
  const at = (i / 255) * (STOPS.length - 1);
  const stop = Math.min(STOPS.length - 2, Math.floor(at));
  return mix(STOPS[stop], STOPS[stop + 1], at - stop);
});
/** The colour of a share from 0 to 1. */
const rampColour = (share) => RAMP[Math.max(0, Math.min(255, Math.round(share * 255)))];
