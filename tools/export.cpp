// export: an adapter in another format. So far: GGUF, as llama.cpp loads it.
#include <cstdio>

#include "io/json.h"
#include "lora/export_gguf.h"
#include "program.h"
#include "run/methods.h"
#include "tensor/error.h"

int main(int argc, char** argv) {
  using namespace lk;
  CLI::App app(
      "Write a PEFT adapter as a GGUF adapter: one JSON object on stdout.\n\n"
      "  export --model model.gguf --adapter runs/mine --out lora.gguf\n",
      "export");
  std::string model, adapter, out;
  app.add_option("--model", model, "the adapter's base: " + std::string(program::kModelHelp))
      ->required()
      ->transform(program::model_name());
  app.add_option("--adapter", adapter, "PEFT folder")->required();
  app.add_option("--out", out, "the .gguf file; must not exist")->required();
  return program::run(app, argc, argv, [&] {
    if (!out.ends_with(".gguf")) throw UsageError("--out " + out + ": must end in .gguf");
    require_lora(adapter, "--adapter " + adapter, "GGUF's adapters hold A and B alone");
    const GgufAdapter written = export_gguf_adapter(model, adapter, out);
    for (const std::string& warning : written.warnings) program::message("warning: " + warning);
    OrderedJson json = {{"out", out},
                        {"modules", written.modules},
                        {"rank", written.rank},
                        {"alpha", written.alpha}};
    program::write(json_text(json) + "\n");
    return 0;
  });
}
