// Stands in for DeepStream's header in tests: the names and types that the parser uses, written for this project.
#pragma once

#include <vector>

enum NvDsInferDataType { FLOAT = 0, HALF = 1, INT8 = 2, INT32 = 3 };

struct NvDsInferDims {
  unsigned int numDims;
  unsigned int d[8];
  unsigned int numElements;
};

struct NvDsInferLayerInfo {
  NvDsInferDataType dataType;
  NvDsInferDims inferDims;
  int bindingIndex;
  const char *layerName;
  void *buffer;
  int isInput;
};

struct NvDsInferNetworkInfo {
  unsigned int width, height, channels;
};

struct NvDsInferParseDetectionParams {
  unsigned int numClassesConfigured;
  std::vector<float> perClassPreclusterThreshold, perClassPostclusterThreshold;
};

struct NvDsInferObjectDetectionInfo {
  unsigned int classId;
  float left, top, width, height, detectionConfidence;
};

typedef bool (*NvDsInferParseCustomFunc)(std::vector<NvDsInferLayerInfo> const &, NvDsInferNetworkInfo const &,
                                         NvDsInferParseDetectionParams const &, std::vector<NvDsInferObjectDetectionInfo> &);

#define CHECK_CUSTOM_PARSE_FUNC_PROTOTYPE(function) extern NvDsInferParseCustomFunc const checked_##function; NvDsInferParseCustomFunc const checked_##function = &function
