// Lorikeet as a library: everything that a program needs to load a model, train LoRA factors on it
// with its own rows and its own loss, evaluate, generate and save. See examples/embed/.
//
// Functions throw the types of tensor/error.h, say nothing but through LogFunctions, and never end
// the process. A Transformer, its Adapter and its Trainer belong to one thread at a time.
#pragma once

#if __cplusplus < 202002L
#error "Lorikeet needs C++20: compile with -std=c++20"
#endif

#include "autograd/gradcheck.h"
#include "autograd/ops.h"
#include "cpu/cpu_backend.h"
#include "cuda/open_device.h"
#include "dist/world.h"
#include "lora/adapter.h"
#include "lora/adapter_io.h"
#include "lora/own_loss.h"
#include "lora/trainer.h"
#include "modelfile/fingerprint.h"
#include "modelfile/model_file.h"
#include "modelfile/named_shapes.h"
#include "nn/evaluation.h"
#include "nn/generate.h"
#include "run/conversation.h"
#include "run/finetune.h"
#include "run/inference.h"
#include "run/scoring.h"
#include "tensor/error.h"
#include "tensor/log.h"
#include "tensor/sample.h"
#include "text/dataset.h"
#include "text/rows.h"
#include "text/tokenizer.h"
#include "version.h"
