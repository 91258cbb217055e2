// What the processes of the benchmark share.
import pg from 'pg';

export { pg };

// bigint as a number: ids are small here
pg.types.setTypeParser(20, Number);

export async function connect() {
  const client = new pg.Client();       // PGHOST and the rest
  client.on('error', () => {});         // the server may end before us
  await client.connect();
  return client;
}

export const pool = (max) => {
  const made = new pg.Pool({ max });
  made.on('error', () => {});
  made.on('connect', (client) => client.on('error', () => {}));
  return made;
};

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// Milliseconds of CLOCK_MONOTONIC, which is one for all processes of the machine
export const now = () => Number(process.hrtime.bigint()) / 1e6;

export const load = (system) => import(`./systems/${system.replace('_single', '')}.mjs`);
