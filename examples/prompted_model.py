"""A model that was never trained on these games, with a prompt: how far does it come, and where does it go wrong?

    python examples/prompted_model.py --model Qwen/Qwen2.5-0.5B-Instruct
    python examples/prompted_model.py --model openai:http://localhost:8000/v1 --model-name my-model

The answers are free texts, read for their commands. The API key of a server is read from OPENAI_API_KEY.
"""

import argparse

from agentprm_gym import write_episodes
from algorithms import evaluate, load_actor, make_eval_env


def main():
    """Play, keep the episodes, and say what happened."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m", help="a folder, a hub id, a short name, or openai:URL")
    parser.add_argument("--model-name", help="the model's name at the server")
    parser.add_argument("--template", default="react", help="prompt template: react, full, compact, or a .jinja file")
    parser.add_argument("--games", type=int, default=10, help="how many games to play, at most 30 turns each")
    parser.add_argument("--max-new-tokens", type=int, default=96, help="longest answer")
    args = parser.parse_args()

    env = make_eval_env(split="valid_unseen", n_envs=min(args.games, 16))
    server = {} if args.model_name is None else {"model_name": args.model_name}
    local = {} if args.model.startswith("openai:") else {"action_mode": "generate", "reason": True}
    actor = load_actor(
        args.model, env, temperature=0.7, template=args.template, max_new_tokens=args.max_new_tokens, **server, **local
    )
    episodes = evaluate(actor, env, games=range(args.games), policy_name=args.model)
    write_episodes("prompted.jsonl.gz", episodes)

    turns = [turn for episode in episodes for turn in episode.turns]
    print(f"{sum(e.success for e in episodes)} of {len(episodes)} games won")
    print(
        f"{100 * sum(not turn.is_admissible for turn in turns) / len(turns):.0f} % of {len(turns)} commands inadmissible"
    )
    for turn in episodes[0].turns[:3]:
        print(f"> {turn.command}    (said: {turn.response.strip()[:60]!r})")


if __name__ == "__main__":
    main()
