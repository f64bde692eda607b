// Somebody else's producer: kafkajs as its documentation has it, with its default partitioner and no headers.
// Reads from standard input {bootstrap, sasl, records: [{topic, key, value}]}, value being the text to send as it is.
// Prints one JSON array: [topic, partition, offset] of each record, in their order.
const { Kafka, logLevel } = require("kafkajs");

async function main(given) {
  const kafka = new Kafka({ clientId: "somebody", brokers: [given.bootstrap], sasl: given.sasl, logLevel: logLevel.ERROR });
  const producer = kafka.producer();
  await producer.connect();
  const places = [];
  for (const { topic, key, value } of given.records) {
    const [sent] = await producer.send({ topic, messages: [{ key, value }] });
    places.push([topic, sent.partition, Number(sent.baseOffset)]);
  }
  await producer.disconnect();
  console.log(JSON.stringify(places));
}

let text = "";
process.stdin.setEncoding("utf8");
process.stdin.on("data", (part) => (text += part));
process.stdin.on("end", () =>
  main(JSON.parse(text)).catch((error) => {
    console.error(error);
    process.exitCode = 1;
  }),
);
