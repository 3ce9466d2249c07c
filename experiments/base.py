"""Every knob once: its meaning, where the report speaks of it, its value.

Sections and equations are the QwenLong-L1.5 report's (arXiv 2512.12967). "Not in the report" marks what we chose.
Experiments import `get_config` and change what they need; a key that is not here cannot be set. Lengths are in tokens.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = ConfigDict()
  c.seed = 0  # of parameters, data order and sampling; all numbers follow from it

  c.mesh = ConfigDict()
  # Devices are those of all hosts; rows are cut over `data` rings of `ring` devices, which may lie on several hosts.
  c.mesh.data = -1  # devices (or rings of them) over which the rows of a batch are cut; -1: all there are
  c.mesh.memory = 0.0  # GiB of a device that a run may take; 0: nine tenths of what it has, where it says so
  c.mesh.ring = 1  # devices over which a row's slots are cut, and experts while sampling; above 1 for rows beyond 16K

  c.model = ConfigDict()
  c.model.preset = "tiny"  # a name of qwenlong_jax.models.presets; not used with a checkpoint
  c.model.checkpoint = ""  # Hugging Face folder (config.json, safetensors) to start from; "": random parameters
  c.model.look_back = False  # start a random model's first-layer heads on the tokens just before (models/induction.py)
  c.model.yarn = 0.0  # stretch the rotary embedding's window by this factor (YaRN); 0: as the model comes
  c.model.dtype = "float32"  # of the computation; master parameters are float32
  c.model.remat = False  # recompute layers in the backward pass: less memory, a third more arithmetic
  c.model.offload = False  # with remat: what attention gave waits for the backward pass in the host's memory
  c.model.together = 1  # with remat: of so many layers only the first one's input is kept, their MLPs recomputed twice

  c.tokenizer = ConfigDict()
  c.tokenizer.path = ""  # folder or sentencepiece model; "": train a small BPE on the tasks' texts
  c.tokenizer.vocab_size = 512  # of that small BPE

  c.data = ConfigDict()
  c.data.folder = ""  # data sets train, validation and test that synthesis wrote; "": generate short tasks from facts
  c.data.examples = 2000  # generated per task and stage
  c.data.worlds = 1  # training examples are of so many worlds: the real one and others with invented names
  c.data.balanced = True  # the same number of every task in a batch (section 2.2); False: as they come
  c.data.shards = 1  # files per task
  c.data.workers = 0  # processes that read ahead

  # Folders of documents (or files), parted by commas, to make training data of (section 3); "": no synthesis.
  c.documents = ""
  c.synthesis = ConfigDict()
  c.synthesis.train = 400  # samples of each task; they come in equal parts from all domains that bear the task
  c.synthesis.validation = 40
  c.synthesis.test = 60
  c.synthesis.train_share = 70  # percent of the documents, by a hash of their names; of tables by size
  c.synthesis.validation_share = 10
  c.synthesis.test_share = 20
  c.synthesis.targets = (4096, 8192, 16384, 32768, 65536)  # tokens of a context, at most, by turns (Figure 3)
  c.synthesis.languages = ()  # ISO codes of the languages to keep; (): all
  c.synthesis.duplicate_threshold = 0.8  # Jaccard similarity from which on a document repeats another
  c.synthesis.decontaminate = ()  # files of test sets (JSONL, JSON, Parquet, text) that no sample may be held by
  c.synthesis.cluster_documents = 1000  # whose facts are joined to one graph and one table
  c.synthesis.vocab_size = 8192  # of the BPE that counts tokens, where there is no tokenizer.path
  c.synthesis.runner = "local"  # or "beam": Apache Beam, for a corpus that needs a cluster; never what takes an llm
  c.synthesis.workers = 0  # processes; 0: as many as there are cores

  # A model that takes part in the synthesis: it proposes, and answers and judges unless others are named below.
  c.llm = endpoint()
  c.llm.solver = endpoint()  # who answers; empty: the model above; without a url: where that one is
  c.llm.verifier = endpoint()  # who judges answers; likewise
  c.llm.prompts = ""  # folder of prompts instead of those in data/prompts, by the same names
  c.llm.max_tokens = 4096  # of a reply, its thoughts included
  # Of a prompt and its reply, by our tokenizer, so leave some; 0: what a model in this process was made for, or no
  # limit. What is longer is not asked: a document is passed over, a sample is screened without its context only, says
  # so, and has no difficulty.
  c.llm.window = 0
  c.llm.concurrency = 16  # requests under way, or replies that this process samples at once
  c.llm.requests_per_minute = 0.0  # at each endpoint; 0: no limit
  c.llm.tokens_per_minute = 0.0  # likewise
  c.llm.timeout = 600.0  # seconds for a reply
  c.llm.attempts = 6  # for a reply, with growing waits between them, before the run stops
  c.llm.most_tokens = 0  # in and out, in all of a workdir, restarts included; 0: no limit
  c.llm.most_cost = 0.0  # likewise, by the prices

  c.evolve = ConfigDict()  # proposer, solver and verifier (section 3); what they make comes before what needs no model
  c.evolve.groups = 20  # of documents, in a cluster at most, and no more than the samples wanted need; 0: none
  c.evolve.documents = 3  # of a group, neighbours in their folder. Not in the report
  c.evolve.longest = 8192  # tokens of a document that is asked about
  c.evolve.rounds = 3  # each sees what the ones before it asked. Not in the report
  c.evolve.proposals = 1  # about a group in a round
  c.evolve.samples = 4  # the solver's answers to each; kept is what it gets right sometimes

  c.tables = ConfigDict()  # questions about tables by a model, each by a query that a reader finds again (section 3)
  c.tables.reword = True  # the questions of templates, where the solver's query for the new words has the same result
  c.tables.contexts = 20  # of templates' samples in a cluster, at most, about which new questions are asked; 0: none
  c.tables.questions = 3  # about each of them, at most. Not in the report

  c.triples = ConfigDict()  # facts that a model finds, joined to a graph whose paths are asked for (section 3)
  c.triples.documents = 200  # of a cluster, at most, neighbours in their folders; 0: none
  c.triples.longest = 8192  # tokens of a document that is read for them
  c.triples.count = 20  # of a document, at most. Not in the report
  c.triples.synonyms = True  # relations of one meaning become one
  c.triples.samples = 50  # of a cluster, at most, and no more than are wanted

  c.screens = ConfigDict()  # of all samples, whoever made them: knowledge grounding, contextual robustness (section 3)
  c.screens.samples = 4  # k of pass@k: answers without the context, and again with it; 0: no screens
  c.screens.guesses = 1  # of the k answers without the context, so many may be right where there are four options
  c.screens.bins = 4  # of difficulty, uniform in pass@k (section 4.2)

  c.warmstart = ConfigDict()  # supervised fine-tuning on worked solutions; the report starts from a trained model
  c.warmstart.steps = 0
  c.warmstart.prompt_tokens = 80  # context and question; the chat template comes on top
  c.warmstart.rows = 32  # packed rows in a step
  c.warmstart.row_slots = 160  # tokens in a row
  c.warmstart.learning_rate = 5e-3
  c.warmstart.warmup_steps = 50  # then a cosine to a tenth

  c.stages = ConfigDict()  # of reinforcement learning, in the order of their names (section 4.1)

  c.batch = ConfigDict()
  c.batch.prompts = 128  # section 4.2 says 128; whether of prompts or samples is not in the report: prompts
  c.batch.group = 8  # responses to each prompt, G (section 4.2)
  c.batch.micro_rows = 0  # rows (a prompt and its group) per device at a time; those of no weight cost nothing; 0: all

  c.batch.row_sizes = 1  # lengths of rows to choose from: the least that holds a batch is taken; each compiles once

  c.sampling = ConfigDict()
  c.sampling.temperature = 0.7  # section 4.2
  c.sampling.top_p = 0.95  # section 4.2
  c.sampling.replay_experts = False  # the learner takes the experts that the sampler chose. Not in the report
  c.sampling.lanes = 0  # groups that a ring (or device) decodes at once; when one ends the next begins; 0: all it has

  c.optimizer = ConfigDict()  # AdamW, constant learning rate
  c.optimizer.learning_rate = 2e-6  # section 4.2
  c.optimizer.b1 = 0.9
  c.optimizer.b2 = 0.999  # not in the report
  c.optimizer.weight_decay = 0.0  # not in the report
  c.optimizer.offload = False  # its state lies in the host's memory between the steps
  c.optimizer.max_norm = 0.0  # clip the gradient's global norm; 0: never. Not in the report
  c.optimizer.nonfinite_limit = 5  # steps in a row skipped for NaN or inf before the run stops

  c.advantage = ConfigDict()
  c.advantage.scope = "task"  # std over: "task" (eq. 7), "group" (GRPO, eq. 3), "batch", "mean" (no std, Dr. GRPO)
  c.advantage.ddof = 1  # of the std; not in the report

  c.clipping = ConfigDict()  # of negative gradients (eqs. 8, 9; Table 4)
  c.clipping.mode = "none"  # or token_high (eq. 8), sequence_high (eq. 9), token_low, sequence_low
  c.clipping.tau = 0.0  # nats; not in the report

  c.aepo = ConfigDict()  # section 4.4
  c.aepo.mode = "paper"  # the latch; or "off", "stateless_high", "readme" (the published snippet)
  c.aepo.low = 0.1  # nats; not in the report, where the 30B's entropy moved between 0.10 and 0.30
  c.aepo.high = 0.3
  # The latch starts at 0: not in the report.

  c.entropy = ConfigDict()
  c.entropy.temperature = 0.0  # at which eq. 11 is taken; 0: the sampling one. Not in the report

  c.loss = ConfigDict()
  c.loss.normalizer = "group"  # response tokens of: "group" (eq. 4), "batch" (DAPO), "sequence" (GRPO)
  c.loss.drop = False  # True: masked samples leave the normaliser
  c.loss.clip_low = 0.0  # off-policy ratio clipping below 1 - clip_low; 0: none (strictly on-policy, section 4.2)
  c.loss.clip_high = 0.0  # likewise above 1 + clip_high
  c.loss.truncate = 0.0  # truncated importance sampling at this ratio; 0: none

  c.rewards = ConfigDict()
  c.rewards.shuffle = False  # a control: rewards are dealt to the batch's samples at random

  c.evaluation = ConfigDict()
  c.evaluation.prompts = 40  # held-out prompts per task
  c.evaluation.group = 8  # responses to each
  c.evaluation.split = "test"
  c.evaluation.prompt_tokens = (80,)  # an equal share of the prompts at each length
  c.evaluation.response_tokens = 48

  c.title = ""  # of a comparison's page
  c.seeds = ()  # a comparison: every variant once for each of these seeds
  c.variants = ()  # of {"name": ..., and the keys that it changes}; (): a single run with c.seed

  c.checkpoint = ConfigDict()
  c.checkpoint.every = 50  # steps
  c.checkpoint.keep = 2
  c.checkpoint.allow_previous = False  # where the newest is damaged, go on from the one before it
  return c


def endpoint() -> ConfigDict:
  """A model at an OpenAI-compatible endpoint (vLLM, SGLang, llama.cpp, a hosted API), or one that this process samples
  from, on `mesh`, in `model.dtype`."""
  c = ConfigDict()
  c.url = ""  # such as http://localhost:8000/v1; "": the model is sampled from by this process
  c.model = ""  # its name there; without a url the Hugging Face folder of a Qwen3; "": no model. Replies are kept by it
  c.key_variable = ""  # the environment variable that holds the key; "": the server wants none
  c.price_in = 0.0  # of a million tokens, in the currency of llm.most_cost
  c.price_out = 0.0
  return c


def stage(
  steps: int, prompt_tokens: int, response_tokens: int, below: float = 0.0, bins: int = 0, per_bin: int = 0
) -> ConfigDict:
  """A stage of reinforcement learning: prompts of up to `prompt_tokens` (the chat template comes on top).

  Of its examples it takes those of a pass@k less than `below` (0: all; 1: all that are not always solved) and of these
  `per_bin` of each task from each of `bins` of pass@k (0: all), by the policy before its first step.
  """
  c = ConfigDict({"steps": steps, "prompt_tokens": prompt_tokens, "response_tokens": response_tokens})
  c.below, c.bins, c.per_bin = below, bins, per_bin
  return c
