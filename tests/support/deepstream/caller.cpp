// Calls the parser as nvinfer does, with an interface that ctypes can use. Returns the number of objects, -1 for a refusal.

#include "nvdsinfer_custom_impl.h"

extern "C" bool AsffParse(std::vector<NvDsInferLayerInfo> const &, NvDsInferNetworkInfo const &,
                          NvDsInferParseDetectionParams const &, std::vector<NvDsInferObjectDetectionInfo> &);

extern "C" int call(float *rows, unsigned count, const char *name, int type, unsigned width, unsigned height, float threshold,
                    unsigned classes, float *found) {
  NvDsInferLayerInfo layer{static_cast<NvDsInferDataType>(type), {2, {count, 7}, count * 7}, 1, name, rows, 0};
  NvDsInferParseDetectionParams params{classes, std::vector<float>(classes, threshold), std::vector<float>(classes, 0.0f)};
  std::vector<NvDsInferObjectDetectionInfo> objects;
  if (!AsffParse({layer}, {width, height, 3}, params, objects)) return -1;
  for (const auto &object : objects) {
    const float values[] = {object.left, object.top, object.width, object.height, object.detectionConfidence,
                            static_cast<float>(object.classId)};
    for (float value : values) *found++ = value;
  }
  return static_cast<int>(objects.size());
}
