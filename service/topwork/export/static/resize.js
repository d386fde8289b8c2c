// Crop and scale a photo as the preprocess spec says, with the integers of Pillow's
// Image.resize(size, filter, box, reducing_gap=3): training and serving scale with it, and a canvas
// scales differently.

const FILTERS = {
  bilinear: { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: {
    support: 2,
    weight(x) {
      const a = -0.5;
      x = Math.abs(x);
      if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
      return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
    },
  },
};
const GAP = 3; // larger photos are averaged over squares first, down to this multiple of the result
const BITS = 22; // of a weight's fraction

/**
 * Return the part of a photo that its central square needs, in whole pixels: x and y with `first`
 * and `last` (exclusive).
 */
export function plan(width, height, { resize, crop, interpolation }) {
  const side = (Math.min(width, height) * crop) / resize;
  const support = FILTERS[interpolation].support;
  const [x, y] = [width, height].map((length) => {
    const start = (length - side) / 2;
    const end = start + side;
    const scale = (end - start) / crop;
    const margin = (support - 0.5) * Math.max(scale, 1);
    return {
      start, end, length,
      first: Math.max(0, Math.trunc(start - margin)),
      last: Math.min(length, Math.ceil(end + margin)),
      factor: Math.trunc(scale / GAP) || 1,
    };
  });
  return { x, y };
}

/**
 * Return uint8 RGB (crop, crop, 3) of the planned part of a photo, RGBA bytes row by row.
 */
export function scale(rgba, { x, y }, { crop, interpolation }) {
  let width = x.last - x.first;
  let height = y.last - y.first;
  let pixels = rgba;
  if (x.factor > 1 || y.factor > 1) {
    pixels = average(rgba, width, height, x.factor, y.factor);
    width = Math.ceil(width / x.factor);
    height = Math.ceil(height / y.factor);
    [x, y] = [[x, width], [y, height]].map(([{ start, end, first, factor }, length]) => (
      { start: (start - first) / factor, end: (end - first) / factor, first: 0, length }
    ));
  }
  const filter = FILTERS[interpolation];
  const [across, down] = [x, y].map((axis) => weights(axis, crop, filter));
  const horizontally = (source, step, columns, rows) => pass(
    source, { pixel: step, line: step * columns }, { pixel: 3, line: 3 * crop }, rows, across,
  );
  const vertically = (source, step, columns) => pass(
    source, { pixel: step * columns, line: step }, { pixel: 3 * columns, line: 3 }, columns, down,
  );
  // The order matters, because each pass rounds. Pillow 13 scales tall pictures vertically first.
  const tall = y.length - crop > 2 * Math.max(0, x.length - crop);
  return tall
    ? horizontally(vertically(pixels, 4, width), 3, width, crop)
    : vertically(horizontally(pixels, 4, width, height), 3, crop);
}

/** Return the weights of the pixels from `first` on, for each of `size` results. */
function weights({ start, end, first, length }, size, { support, weight }) {
  [start, end] = [Math.fround(start), Math.fround(end)];
  const step = Math.fround(end - start) / size;
  const stretch = Math.max(step, 1);
  return Array.from({ length: size }, (_, index) => {
    const centre = start + (index + 0.5) * step;
    const from = Math.max(0, Math.trunc(centre - support * stretch + 0.5));
    const to = Math.min(length, Math.trunc(centre + support * stretch + 0.5));
    const values = Array.from(
      { length: to - from }, (_, at) => weight((at + from - centre + 0.5) * (1 / stretch)),
    );
    const sum = values.reduce((total, value) => total + value, 0);
    return { first: from - first, values: Int32Array.from(values, (value) => fixed(value / sum)) };
  });
}

function fixed(value) {
  return Math.trunc((value < 0 ? -0.5 : 0.5) + value * 2 ** BITS);
}

/**
 * Return RGB scaled along one dimension: of `lines` lines, with the distances in bytes of pixels
 * and lines in the source and in the result.
 */
function pass(source, from, to, lines, all) {
  const result = new Uint8ClampedArray(3 * lines * all.length);
  all.forEach(({ first, values }, index) => {
    for (let line = 0; line < lines; line++) {
      let [red, green, blue] = [2 ** (BITS - 1), 2 ** (BITS - 1), 2 ** (BITS - 1)];
      let at = line * from.line + first * from.pixel;
      for (let each = 0; each < values.length; each++, at += from.pixel) {
        const value = values[each];
        red += source[at] * value;
        green += source[at + 1] * value;
        blue += source[at + 2] * value;
      }
      const target = line * to.line + index * to.pixel;
      result[target] = red >> BITS;
      result[target + 1] = green >> BITS;
      result[target + 2] = blue >> BITS;
    }
  });
  return result;
}

/** Return RGBA of the means of rectangles; those at the right and bottom edges may be smaller. */
function average(source, width, height, across, down) {
  const columns = Math.ceil(width / across);
  const rows = Math.ceil(height / down);
  const result = new Uint8ClampedArray(4 * columns * rows);
  for (let row = 0; row < rows; row++) {
    const bottom = Math.min(height, (row + 1) * down);
    for (let column = 0; column < columns; column++) {
      const right = Math.min(width, (column + 1) * across);
      const count = (bottom - row * down) * (right - column * across);
      const multiplier = Math.trunc(Math.fround(2 ** 32 / (256 * count)));
      for (let channel = 0; channel < 3; channel++) {
        let sum = Math.trunc(count / 2);
        for (let line = row * down; line < bottom; line++) {
          for (let at = column * across; at < right; at++) {
            sum += source[4 * (line * width + at) + channel];
          }
        }
        result[4 * (row * columns + column) + channel] = Math.trunc((sum * multiplier) / 2 ** 24);
      }
    }
  }
  return result;
}
