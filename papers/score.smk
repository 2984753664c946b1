# A survey of any size ranked by one shipped model: its parts fanned out as shards over nodes, then one sorted table.
#
#   snakemake --snakefile papers/score.smk --profile papers/profiles/slurm \
#       --config "files=[/survey/coadds]" model=desi out=/scratch/ranked.parquet shards=64 gpus=1
#
# Scoring is resumable by itself: a shard that was killed goes on where it stopped, whatever the number of shards was.
import shlex
import sys

FILES = config["files"]  # spectra, folders of them, or stores
OUT = config["out"]
SHARDS = int(config.get("shards", 4))
SCORE = shlex.join([sys.executable, "-m", "spectral_core", "score", *map(str, FILES), "--model", config.get("model", "sdss"),
                    "--out", OUT, "--device", config.get("device", "auto")])


localrules:
    all,


rule all:
    input:
        OUT,


rule shard:
    input:
        FILES,
    output:
        f"{OUT}.parts/shard-{{k}}-of-{SHARDS}.json",
    log:
        f"{OUT}.logs/shard-{{k}}-of-{SHARDS}.log",
    params:
        score=SCORE,
        shard=lambda wildcards: f"{wildcards.k}/{SHARDS}",
    threads: 1
    resources:
        gpu=int(config.get("gpus", 0)),
        mem_mb=int(config.get("mem_mb", 4_000)),
        runtime=int(config.get("minutes", 12 * 60)),
    shell:
        """
        echo "$(date +%H:%M) shard {params.shard} begins; follow it in {log}"
        {params.score} --shard {params.shard} > {log:q} 2>&1 || {{ tail -n 1 {log:q}; exit 1; }}
        """


rule merge:
    input:
        [f"{OUT}.parts/shard-{k}-of-{SHARDS}.json" for k in range(1, SHARDS + 1)],
    output:
        OUT,
    log:
        f"{OUT}.logs/merge.log",
    params:
        score=SCORE,
    resources:
        mem_mb=int(config.get("mem_mb", 4_000)),
        runtime=int(config.get("minutes", 12 * 60)),
    shell:
        "{params.score} > {log:q} 2>&1 || {{ tail -n 1 {log:q}; exit 1; }}"
