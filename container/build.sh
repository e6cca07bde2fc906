#!/usr/bin/env bash
# Builds the agents' image.
#
#   container/build.sh [--base IMAGE] [--tag TAG] [--runner FILE]
#
# --base     what it is built on; without a registry: scripts/base-image makes one, then --base lamplighter-base
# --tag      its name; lamplighter-agent:latest
# --runner   a static runner that is built already
#
# container/.env, if it is there, has NAME=VALUE lines; container/.env.example shows which.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh
case ${1:-} in -h | --help) sed -n '2,11s/^# \{0,1\}//p' container/build.sh && exit 0 ;; esac
need python3 "install Python 3, for example: apt-get install python3" || exit 69
need docker "install it, or run scripts/docker-engine" || exit 69

docker version >/dev/null 2>&1 || { echo "no Docker engine answers; scripts/docker-engine makes one" >&2 && exit 69; }

wrong() { echo "$1" >&2 && exit 64; }

base='' tag=lamplighter-agent:latest runner=${LAMPLIGHTER_STATIC_RUNNER:-}
while [ $# -gt 0 ]; do
    case $1 in
    --base | --tag | --runner)
        [ -n "${2:-}" ] || wrong "$1 needs a value; see $0 --help"
        printf -v "${1#--}" %s "$2"
        shift 2
        ;;
    *) wrong "unknown argument $1; see $0 --help" ;;
    esac
done
[ -z "$runner" ] || [ -x "$runner" ] || wrong "$runner is no program; build one: scripts/runner-static build"

CLAUDE_CODE_VERSION='' CODEX_VERSION='' INSTALL_CJK_FONTS=0
if [ -e container/.env ]; then
    number=0
    while IFS= read -r line || [ -n "$line" ]; do
        number=$((number + 1))
        case $line in '' | '#'*) continue ;; esac
        name=${line%%=*} value=${line#*=}
        [ "$name" != "$line" ] || wrong "container/.env:$number: not a line of the form NAME=VALUE"
        # A version is a part of a file's name and of an address, so it is one and nothing else.
        case $name in
        CLAUDE_CODE_VERSION | CODEX_VERSION) form='^([0-9]+\.[0-9]+\.[0-9]+[0-9A-Za-z.-]*)?$' ;;
        INSTALL_CJK_FONTS) form='^[01]$' ;;
        NPM_REGISTRY) form='^(https?://[A-Za-z0-9._:/~-]+)?$' ;;
        *) wrong "container/.env:$number: $name is none of the names in container/.env.example" ;;
        esac
        [[ $value =~ $form ]] || wrong "container/.env:$number: '$value' is no value for $name"
        printf -v "$name" %s "$value"
    done <container/.env
fi
[ -z "${NPM_REGISTRY:-}" ] || export NPM_REGISTRY

if [ -z "$runner" ]; then
    scripts/runner-static build
    runner=target/x86_64-unknown-linux-gnu/release/lamplighter-runner
fi
version=$("$runner" --version | cut -d' ' -f2)

context=$(mktemp -d)
trap 'rm -rf "$context"' EXIT
mkdir -p "$context/cli/claude" "$context/cli/codex" container/.cache

# Fetched here and not in the build: what the registry gave is verified before any of it is in a layer, it is kept for
# the next build of whatever image, and a build with what is kept needs no network and no npm.
cli() {
    local folder=$1 package=$2 wanted=$3
    [ -n "$wanted" ] || return 0
    step "$package $wanted"
    local file="container/.cache/$folder-$wanted.tgz"
    python3 container/fetch.py "$package" "$wanted" "$file"
    tar -xzf "$file" --strip-components=1 --no-same-owner -C "$context/cli/$folder"
}
# Each platform has a package with programs that need no JavaScript.
cli claude @anthropic-ai/claude-code-linux-x64 "$CLAUDE_CODE_VERSION"
cli codex @openai/codex "${CODEX_VERSION:+$CODEX_VERSION-linux-x64}"

cp container/bun "$context/bun"
cp "$runner" "$context/lamplighter-runner"
chmod 0755 "$context/bun" "$context/lamplighter-runner"
arguments=(--build-arg "VERSION=$version" --build-arg "INSTALL_CJK_FONTS=$INSTALL_CJK_FONTS")
[ -z "$base" ] || arguments+=(--build-arg "BASE=$base")
# The docker command needs its plugin buildx for BuildKit. Without it the engine's old builder does the work, which does
# not know RUN --mount: it gets the Dockerfile without those words, and CLEAN=1 keeps package lists out of the layer.
if docker buildx version >/dev/null 2>&1; then
    cp container/Dockerfile "$context/Dockerfile"
    export DOCKER_BUILDKIT=1
else
    sed 's/--mount=[^ ]* *//g' container/Dockerfile >"$context/Dockerfile"
    arguments+=(--build-arg CLEAN=1)
    export DOCKER_BUILDKIT=0
fi
step "build $tag"
docker build "${arguments[@]}" --tag "$tag" "$context"
docker image ls "${tag%%:*}"
