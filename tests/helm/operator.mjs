// Checks objects of the Prometheus Operator: a JSON list on stdin, a list of errors on stdout.
import * as models from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1";
import { text } from "node:stream/consumers";

const errors = JSON.parse(await text(process.stdin)).map((one) => {
  try {
    new models[one.kind](one).validate();
    return "";
  } catch (error) {
    return error.message;
  }
});
console.log(JSON.stringify(errors));
