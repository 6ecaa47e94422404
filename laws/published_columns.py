"""How each published table's columns map to the run table's: one function a table, raw columns in, run table out.

`params` leaves embeddings out where the release says how many there are, and counts them where it has no other count
(the table's notes say so); `params_total` counts them. Of a mixture of experts `params` counts all experts.
"""

from __future__ import annotations

import pandas as pd


def steplaw_dense(raw: pd.DataFrame) -> pd.DataFrame:
    runs = _shape(raw).assign(
        run_id=raw["exp_name"],
        recipe="steplaw",
        params=raw["N"],
        tokens=raw["D"],
        lr=raw["lr"],
        seq_len=2048,
        batch_tokens=raw["bs"] * 2048,
        loss=raw["smooth loss"],
    )
    # M of DeepSeek, as the authors' code computes C = M D: attention scores included.
    runs["flops"] = (6 * raw["N"] + 12 * 2048 * raw["numl"] * raw["h"]) * raw["D"].astype(float)
    return runs


def steplaw_moe(raw: pd.DataFrame) -> pd.DataFrame:
    return _shape(raw).assign(
        run_id=raw["exp_name"],
        recipe="steplaw_moe_" + raw["moe_name"],
        params=raw["N"],
        params_active=raw["Na"],
        n_experts=raw["nume"],
        top_k=raw["topk"],
        tokens=raw["D"],
        lr=raw["lr"],
        seq_len=2048,
        batch_tokens=raw["bs"] * 2048,
        loss=raw["smooth loss"],
        flops=raw["M"] * raw["D"].astype(float),
    )


def farseer(raw: pd.DataFrame) -> pd.DataFrame:
    return _shape(raw).assign(
        recipe="farseer",
        params=raw["N"],
        params_total=raw["N_add_emb"],
        tokens=raw["D"],
        lr=raw["lr"],
        seq_len=2048,
        batch_tokens=raw["bs"] * 2048,
        loss=raw["smooth loss"],
        bpc=raw["L"],
        flops=raw["M"] * raw["D"].astype(float),
    )


def _shape(raw: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "d_model": raw["h"],
            "d_ff": raw["ffnh"],
            "n_heads": raw["numh"],
            "n_kv_heads": raw["numh"],
            "n_layers": raw["numl"],
        }
    )


def epoch_chinchilla(raw: pd.DataFrame) -> pd.DataFrame:
    params, flops = raw["Model Size"], raw["Training FLOP"]
    return pd.DataFrame(
        {
            "recipe": "massivetext",
            "params": params,
            "params_total": params,
            "tokens": flops / (6 * params),
            "loss": raw["loss"],
            "flops": flops,
        }
    )


def misfitting(raw: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "recipe": "misfitting",
            "params": raw["N_no_emb"],
            "params_total": raw["N"],
            "tokens": raw["D"],
            "lr": raw["peak_lr"],
            "batch_tokens": raw["train_tokens"] / raw["total_steps"],
            "seq_len": 2048,
            "eval_loss": raw["C4 Eval Loss"],
        }
    )


def misfitting_checkpoints(raw: pd.DataFrame) -> pd.DataFrame:
    run = raw[["model", "sweep", "total_steps", "peak_lr"]].astype(str).agg(" ".join, axis=1)
    return misfitting(raw).assign(run_id=run, step=raw["current_steps"], portion=raw["portion_steps_elapsed"])


def gadre(raw: pd.DataFrame) -> pd.DataFrame:
    runs = pd.DataFrame(
        {
            "run_id": raw["name"],
            "recipe": raw["corpus"],
            "params": raw["N_no_embed"],
            "params_total": raw["N"],
            "tokens": raw["D"],
            "lr": raw["lr"],
            "eval_loss": raw["loss_c4_val"],
            "eval_loss_error": _standard_error(raw, "c4_val"),
        }
    )
    for column in raw.columns:
        if column.startswith("loss_") and (held_out := column.removeprefix("loss_")) != "c4_val":
            runs[f"eval_loss_{held_out}"] = raw[column]
            runs[f"eval_loss_{held_out}_error"] = _standard_error(raw, held_out)
    return runs


def _standard_error(raw: pd.DataFrame, held_out: str) -> pd.Series:
    """Of a mean over tokens, from its 95% bounds."""
    return (raw[f"tok_hi95_{held_out}"] - raw[f"tok_lo95_{held_out}"]) / (2 * 1.96)


def datablations(raw: pd.DataFrame) -> pd.DataFrame:
    # The other suffixes mark ablations, but 8 and 5 are ends of names: "4b8" is 4.8e9 tokens, which was read as 4e9.
    raw = raw[raw["suffix"].isna() | raw["suffix"].isin(["c4", "c4v2", "8", "5"])].reset_index(drop=True)
    tokens, unique = raw["D"].astype(float), raw["U"].astype(float)
    cut = raw["suffix"].isin(["8", "5"])
    unique[cut] = raw["name"][cut].str[-3:].map(_billions)
    cut &= raw["U"] > raw["D"]  # and so was D
    tokens[cut] = raw["name"][cut].str[-6:-3].map(_billions)
    return pd.DataFrame(
        {
            "run_id": raw["name"],
            "recipe": (unique >= tokens).map({True: "single-epoch", False: "repeated"}),
            "params": raw["N"],
            "params_total": raw["N"],
            "tokens": tokens,
            "unique_tokens": unique,
            "eval_loss": raw["loss"],
            "seed": raw["seed"],
        }
    )


def _billions(text: str) -> float:
    """4.8e9 for "4b8"."""
    return float(text.replace("b", ".")) * 1e9


def marin(raw: pd.DataFrame, mix: str) -> pd.DataFrame:
    lr = raw["optimizer.learning_rate"] if "optimizer.learning_rate" in raw else raw["learning_rate"]
    return pd.DataFrame(
        {
            "run_id": raw["Name"],
            "recipe": f"marin-{mix}",
            "params": raw["parameter_count"],
            "params_total": raw["parameter_count"],
            "tokens": raw["throughput/total_tokens"],
            "lr": lr,
            "batch_tokens": raw["trainer.train_batch_size"] * 4096,
            "seq_len": 4096,
            "eval_loss": raw["eval/paloma/macro_loss"],
            "flops": raw["throughput/total_gflops"] * 1e9,
            "d_model": raw["model.hidden_dim"],
            "n_layers": raw["model.num_layers"],
        }
    )


def isoflops(raw: pd.DataFrame) -> pd.DataFrame:
    """Every experiment but Llama 3's."""
    raw = raw[raw["source"] != "llama_3"].reset_index(drop=True)
    mix = raw["dataset"].where(raw["source"] == "marin_202603")
    return _isoflops(raw).assign(
        recipe=(raw["source"] + "-" + mix).fillna(raw["source"]).str.replace("_202603", ""), eval_loss=raw["loss"]
    )


def isoflops_llama3(raw: pd.DataFrame) -> pd.DataFrame:
    """Llama 3's points. The rows of condition exp_loss are the exponential of the loss, not a loss: left out."""
    raw = raw[(raw["source"] == "llama_3") & (raw["condition"] == "raw_loss")].reset_index(drop=True)
    return _isoflops(raw).assign(recipe="llama_3", bpc=raw["loss"])


def _isoflops(raw: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "params": raw["params"],
            "params_total": raw["params"],
            "tokens": raw["tokens"],
            "flops": raw["budget"],
            "outlier": raw["outlier"].astype(bool),
            "outlier_reason": raw["reason"].replace("none", ""),
        }
    )


def routed(raw: pd.DataFrame) -> pd.DataFrame:
    """The end of every run."""
    runs = routed_checkpoints(raw)
    return runs.loc[runs.groupby("run_id", sort=False)["step"].idxmax()].reset_index(drop=True)


def routed_checkpoints(raw: pd.DataFrame) -> pd.DataFrame:
    raw = raw[(raw["step"] > 0) & raw["loss_validation"].notna()].reset_index(drop=True)
    # The main grid routes every other layer to one expert; the rest varies that, or widens a dense model.
    usual = (raw["k"] == 1) & (raw["routing_frequency"] == 0.5) & (raw["flop_increase"] == 1)
    return pd.DataFrame(
        {
            "run_id": raw["hyper_id"].astype(str),
            "recipe": raw["router_type"].where(usual, raw["router_type"] + "-variant"),
            "params": raw["total_parameter_count"],
            "params_total": raw["total_parameter_count"],
            "params_active": raw["dense_parameter_count"],
            "n_experts": raw["num_experts"],
            "top_k": raw["k"].where(raw["num_experts"] > 1, 1),
            "routing_frequency": raw["routing_frequency"],
            "tokens": raw["step"] * 256.0 * 2048,
            "step": raw["step"],
            "batch_tokens": 256 * 2048,
            "seq_len": 2048,
            "eval_loss": raw["loss_validation"],
            "seed": raw["seed"],
            "d_model": raw["d_model"],
            "n_layers": raw["num_blocks"],
        }
    )
