// Numbers as people read them.

const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];

export function size(bytes) {
  let power = 0;
  let value = bytes;
  while (power < 4 && Number(value.toFixed(1)) >= 1024) {
    value /= 1024;
    power += 1;
  }
  const digits = power === 0 || value >= 100 || Number.isInteger(value) ? 0 : 1;
  return `${value.toFixed(digits)} ${UNITS[power]}`;
}

// For sizes that are compared: with more digits.
export function precise(bytes) {
  const value = bytes / 2 ** 20;
  return `${value.toLocaleString('en', { maximumFractionDigits: value < 1000 ? 1 : 0 })} MiB`;
}

export function percent(share) {
  const value = share * 100;
  return `${value.toFixed(value >= 99.95 || value === 0 ? 0 : 1)} %`;
}

export function seconds(value) {
  if (value < 0.9995) return `${Math.max(1, Math.round(value * 1000))} ms`;
  return `${value.toFixed(value < 10 ? 2 : 1)} s`;
}

export function rate(value) {
  return value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0);
}

export function count(number, noun) {
  return `${number.toLocaleString('en')} ${noun}${number === 1 ? '' : 's'}`;
}
