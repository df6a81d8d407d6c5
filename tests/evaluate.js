// Evaluates programs that ModelMeter wrote as JSON: `node evaluate.js < {"program": ..., "points": [[...], ...]}`.
// Whole numbers and fractions are exact: [numerator, denominator] of BigInts. Expectations are floating point.
"use strict";

const gcd = (a, b) => { while (b) [a, b] = [b, a % b]; return a < 0n ? -a : a; };
const fraction = (n, d) => { if (d < 0n) [n, d] = [-n, -d]; const g = gcd(n, d); return [n / g, d / g]; };
const exact = (value) => Array.isArray(value);
const real = (value) => exact(value) ? Number(value[0]) / Number(value[1]) : value;
const number = (value) => {
  if (exact(value)) return fraction(BigInt(value[0]), BigInt(value[1]));
  return Number.isInteger(value) ? [BigInt(value), 1n] : value;
};
const either = (ofExact, ofReal) => (a, b) => exact(a) && exact(b) ? ofExact(a, b) : ofReal(real(a), real(b));

const times = either((a, b) => fraction(a[0] * b[0], a[1] * b[1]), (a, b) => a * b);
const plus = either((a, b) => fraction(a[0] * b[1] + b[0] * a[1], a[1] * b[1]), (a, b) => a + b);
const minus = (a, b) => plus(a, times([-1n, 1n], b));
const ratio = either((a, b) => fraction(a[0] * b[1], a[1] * b[0]), (a, b) => a / b);
const floor = (value) => {
  if (!exact(value)) return Math.floor(value);
  const [n, d] = value, rounded = n / d; // towards zero
  return [rounded * d > n ? rounded - 1n : rounded, 1n];
};
const below = either((a, b) => a[0] * b[1] < b[0] * a[1], (a, b) => a < b);

const functions = {
  ratio,
  floor_div: (a, b) => floor(ratio(a, b)),
  ceil_div: (a, b) => minus([0n, 1n], floor(ratio(minus([0n, 1n], a), b))),
  place_in: (n, chunk) => minus(n, times(chunk, floor(ratio(minus(n, [1n, 1n]), chunk)))),
  minimum: (a, b) => below(b, a) ? b : a,
  maximum: (a, b) => below(a, b) ? b : a,
  expected_distinct: (experts, active, tokens) => {
    const missed = minus(experts, active);
    const share = Math.pow(real(missed) / real(experts), real(tokens) - 1);
    return missed[0] === 0n || real(tokens) === 1 ? minus(experts, times(missed, number(share))) : real(experts) - real(missed) * share;
  },
};

function evaluate(program, point) {
  const values = [];
  const operand = (o) => Array.isArray(o) ? number(o[0]) : values[o];
  const steps = {
    name: (name) => number(point[program.names.indexOf(name)]),
    times: (a, b) => times(operand(a), operand(b)),
    call: (name, operands) => functions[name](...operands.map(operand)),
    sum: (terms, denominator) => {
      const product = ([c, o]) => o === null ? number(c) : times(number(c), values[o]);
      return ratio(terms.map(product).reduce(plus, [0n, 1n]), number(denominator));
    },
  };
  for (const [kind, ...rest] of program.lines) values.push(steps[kind](...rest));
  return program.outputs.map(operand).map((v) => exact(v) && v[1] === 1n ? String(v[0]) : real(v));
}

const { program, points } = JSON.parse(require("fs").readFileSync(0, "utf8"));
process.stdout.write(JSON.stringify(points.map((point) => evaluate(program, point))));
