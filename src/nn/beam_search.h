// Beam search: the most likely of the texts that keeping several beginnings at a time finds.
//
//   score(text) = sum of log p(token) over its new tokens, an end token included
//
// Each step extends the `beams` best unfinished texts by every token. Of these extensions, those
// among the best `beams` that end (in a stop token, or at max_tokens) join the finished texts, which
// are compared by score / (number of new tokens)^length_penalty and of which the best `beams` are
// kept; the best `beams` that do not end go on. The search ends when `beams` texts are finished and
// the best unfinished one, divided by its own length now, is no better than the worst of them.
// Repetition penalty and no_repeat_ngram change log-probabilities here, and not logits. Equal scores:
// the better beam's token comes first, then the lower id; an earlier finished text before a later.
// Source: Graves, "Sequence Transduction with Recurrent Neural Networks", 2012; the rules are those
// of transformers' generate() with early_stopping=False.
//
// A prompt is computed once. Each beam has a slot of the KV cache; where two texts go on from one
// beam, the second takes the slot of a beam that ended and copies the rows that differ.
#pragma once

#include "nn/generate.h"

namespace lk {

// Generator::run() for requests whose settings ask for the same number of beams, two or more; the
// decoder's cache has room for at least one request's beams, and its slots are taken.
std::vector<Generation> beam_search(Decoder& decoder, const Tokenizer* tokenizer,
                                    std::span<const GenerationRequest> requests,
                                    const GenerationEvents& events);

}  // namespace lk
