#!/bin/sh
# An agent's process that will not end when it is asked to, for the set `stubborn`.
trap '' TERM
echo $$ > stubborn-runs
while :; do sleep 1; done
