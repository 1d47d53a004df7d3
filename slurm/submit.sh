#!/usr/bin/env bash
# Submit a chain of jobs, each after the success of the one before: tokenize, train, evaluate.
#
#     slurm/submit.sh examples/RECIPE.sh [options] -- [Megatron flags]
#
#     --inputs LIST             file that names JSONL files, a line each: tokenize them first ...
#     --data-prefix PREFIX      ... into this dataset, and train on it
#     --array-tasks N           ... in so many tasks (default: 8, or the number of files)
#     --evaluate FLAGS          then evaluate, by flags of tools/evaluate.py: "--tasks offline"
#     --preprocess-sbatch ARGS, --pretrain-sbatch ARGS, --evaluate-sbatch ARGS
#                               options of sbatch for each of the jobs, such as "--nodes 4"
#
# With --inputs, the flags must name a tokenizer: --tokenizer-type and --tokenizer-model.
set -euo pipefail

cd "$(dirname "$0")/.."
# shellcheck source-path=SCRIPTDIR/..
source slurm/common.sh

fail() {
    echo "submit.sh: error: $*" >&2
    exit 2
}

usage() {
    sed -n '2,/^set/{s/^# \{0,1\}//;/^set/!p}' "$0"
    exit "$1"
}

recipe='' list='' prefix='' array_tasks=8 evaluation=()
preprocess_options=() pretrain_options=() evaluate_options=()
while (($# > 0)); do
    case $1 in
        --help | -h) usage 0 ;;
        --) shift && break ;;
        --*) (($# > 1)) || fail "$1 needs a value" ;;&
        --inputs) list=$2 ;;
        --data-prefix) prefix=$2 ;;
        --array-tasks) array_tasks=$2 ;;
        --evaluate) read -ra evaluation <<<"$2" ;;
        --preprocess-sbatch) read -ra preprocess_options <<<"$2" ;;
        --pretrain-sbatch) read -ra pretrain_options <<<"$2" ;;
        --evaluate-sbatch) read -ra evaluate_options <<<"$2" ;;
        --*) fail "no option $1; --help lists them. Megatron's flags go after --" ;;
        *) [[ -z $recipe ]] || fail "a second recipe: $1"
            recipe=$1
            shift
            continue ;;
    esac
    shift 2
done
[[ -n $recipe ]] || usage 2 >&2
[[ -r $recipe ]] || fail "no recipe $recipe"
[[ $array_tasks =~ ^[1-9][0-9]*$ ]] || fail "--array-tasks $array_tasks is no positive number"

# The value of flag $1 in the arguments after it, the last one as for Python: --flag value or
# --flag=value.
value_of() {
    local flag=$1 value=''
    shift
    while (($# > 0)); do
        case $1 in
            "$flag") value=${2:-} ;;
            "$flag="*) value=${1#*=} ;;
        esac
        shift
    done
    [[ -n $value ]] || fail "--inputs needs $flag among the flags after --"
    echo "$value"
}

flags=("$@")
after=()
if [[ -n $list ]]; then
    [[ -n $prefix ]] || fail "--inputs needs --data-prefix"
    for flag in "$@"; do
        [[ ${flag%%=*} != --data-path ]] || fail "$flag: with --inputs the data is --data-prefix's"
    done
    read_list "$list"
    files=${#inputs[@]}
    ((array_tasks < files)) || array_tasks=$files
    type=$(value_of --tokenizer-type "$@")
    model=$(value_of --tokenizer-model "$@")
    tokenize=(slurm/preprocess.sbatch "$list" "$prefix"
        --tokenizer-type "$type" --tokenizer-model "$model" --append-eod)
    job=$(sbatch --parsable --array="0-$((array_tasks - 1))" "${preprocess_options[@]}" \
        "${tokenize[@]}")
    echo "tokenize: job ${job%%;*}, $array_tasks tasks"
    job=$(sbatch --parsable --dependency="afterok:${job%%;*}" --kill-on-invalid-dep=yes \
        "${preprocess_options[@]}" "${tokenize[@]}")
    echo "merge: job ${job%%;*}"
    after=(--dependency="afterok:${job%%;*}" --kill-on-invalid-dep=yes)
    flags+=(--data-path "${prefix}_text_document")
fi
job=$(sbatch --parsable "${after[@]}" "${pretrain_options[@]}" \
    slurm/pretrain.sbatch "$recipe" "${flags[@]}")
echo "train: job ${job%%;*}"
if ((${#evaluation[@]} > 0)); then
    job=$(sbatch --parsable --dependency="afterok:${job%%;*}" --kill-on-invalid-dep=yes \
        "${evaluate_options[@]}" slurm/convert_and_evaluate.sbatch "$recipe" "${evaluation[@]}")
    echo "evaluate: job ${job%%;*}"
fi
