// Turns the rows of `candidates` [K, 7] into DeepStream's objects: threshold, NMS per class, the best of the rest.
//
// A row is x, y, width, height (center, in pixels of the input), score, class, index of the anchor. Every step and its order
// are those of the project's runtime, so that DeepStream shows what was measured. Needs `cluster-mode=4`.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "asff_model.h"
#include "nvdsinfer_custom_impl.h"

namespace {

constexpr unsigned kColumns = 7;
constexpr float kFarthest = 1e9f, kLargest = 1e16f;  // bounds that keep areas finite

struct Box {
  float x1, y1, x2, y2, score;
  unsigned class_id;
  float anchor;  // breaks ties of scores
};

bool fail(const char *problem) {
  std::fprintf(stderr, "asff_parser: %s\n", problem);
  return false;
}

float area(const Box &box) { return std::max(box.x2 - box.x1, 0.0f) * std::max(box.y2 - box.y1, 0.0f); }

float iou(const Box &first, const Box &second) {
  const Box common{std::max(first.x1, second.x1), std::max(first.y1, second.y1), std::min(first.x2, second.x2),
                   std::min(first.y2, second.y2), 0.0f, 0u, 0.0f};
  const float intersection = area(common);
  const float together = area(first) + area(second) - intersection;
  return together > 0.0f ? intersection / together : 0.0f;
}

Box clip(Box box, float width, float height) {
  box.x1 = std::min(std::max(box.x1, 0.0f), width);
  box.y1 = std::min(std::max(box.y1, 0.0f), height);
  box.x2 = std::min(std::max(box.x2, 0.0f), width);
  box.y2 = std::min(std::max(box.y2, 0.0f), height);
  return box;
}

bool is_index(float value, float count) { return value >= 0.0f && value < count && value == std::floor(value); }

// Refuses what the model cannot give out, NaN included.
bool is_valid(const float *row) {
  return !std::isnan(row[0]) && !std::isnan(row[1]) && row[2] >= 0.0f && row[3] >= 0.0f && row[4] >= 0.0f && row[4] <= 1.0f &&
         is_index(row[5], asff::kClasses) && is_index(row[6], asff::kAnchors);
}

Box unpack(const float *row) {
  const float x = std::min(std::max(row[0], -kFarthest), kFarthest), y = std::min(std::max(row[1], -kFarthest), kFarthest);
  const float half_width = std::min(row[2], kLargest) / 2.0f, half_height = std::min(row[3], kLargest) / 2.0f;
  return {x - half_width, y - half_height, x + half_width, y + half_height, row[4], static_cast<unsigned>(row[5]), row[6]};
}

bool is_better(const Box &first, const Box &second) {
  return first.score != second.score ? first.score > second.score : first.anchor < second.anchor;
}

std::vector<Box> select(std::vector<Box> boxes) {
  std::sort(boxes.begin(), boxes.end(), is_better);
  std::vector<Box> kept;
  for (const Box &box : boxes) {
    if (kept.size() == asff::kMostDetections) break;
    const bool overlaps = std::any_of(kept.begin(), kept.end(), [&box](const Box &better) {
      return better.class_id == box.class_id && iou(better, box) > asff::kIouThreshold;
    });
    if (!overlaps) kept.push_back(box);
  }
  return kept;
}

const NvDsInferLayerInfo *find(const std::vector<NvDsInferLayerInfo> &layers, const char *name) {
  for (const NvDsInferLayerInfo &layer : layers)
    if (layer.layerName != nullptr && std::strcmp(layer.layerName, name) == 0) return &layer;
  return nullptr;
}

}  // namespace

extern "C" bool AsffParse(std::vector<NvDsInferLayerInfo> const &layers, NvDsInferNetworkInfo const &network,
                          NvDsInferParseDetectionParams const &params, std::vector<NvDsInferObjectDetectionInfo> &objects) {
  const NvDsInferLayerInfo *layer = find(layers, "candidates");
  if (layer == nullptr || layer->buffer == nullptr || layer->dataType != FLOAT)
    return fail("the engine has no float output `candidates`; build it from the model.onnx beside the configuration");
  if (layer->inferDims.numElements != asff::kRows * kColumns)
    return fail("the output `candidates` has another shape than the model's; write this folder again for the model you run");
  if (params.perClassPreclusterThreshold.size() < asff::kClasses)
    return fail("num-detected-classes is smaller than the model's number of classes; use the configuration of this folder");

  const float *rows = static_cast<const float *>(layer->buffer);
  const float width = static_cast<float>(network.width), height = static_cast<float>(network.height);
  std::vector<Box> boxes;
  for (unsigned i = 0; i < asff::kRows; ++i) {
    const float *row = rows + i * kColumns;
    if (!is_valid(row)) return fail("a row of `candidates` is NaN or out of range; the engine is damaged");
    const Box box = unpack(row);
    // A box beside the image shows nothing; such a box must not suppress another.
    if (box.score >= params.perClassPreclusterThreshold[box.class_id] && area(clip(box, width, height)) > 0.0f)
      boxes.push_back(box);
  }
  for (const Box &box : select(boxes)) {
    const Box shown = clip(box, width, height);
    NvDsInferObjectDetectionInfo object{};
    object.classId = shown.class_id;
    object.left = shown.x1;
    object.top = shown.y1;
    object.width = shown.x2 - shown.x1;
    object.height = shown.y2 - shown.y1;
    object.detectionConfidence = shown.score;
    objects.push_back(object);
  }
  return true;
}

CHECK_CUSTOM_PARSE_FUNC_PROTOTYPE(AsffParse);
