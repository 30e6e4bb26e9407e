/* Streams, capture, graphs and events of the double. */
#define _GNU_SOURCE
#include "driver.h"
#include <stdlib.h>
#include <string.h>
#include <time.h>

static Item legacy; /* stream 0, which waits for all blocking streams and they for it */

static Item *stream_of(void *handle) {
    if (!handle || handle == (void *)1) return &legacy;
    Item *stream = find(STREAM, handle);
    if (!stream) fault("a stream that was destroyed is used");
    return stream;
}

static void append(Item *list, const Operation *given) {
    Operation *operation = malloc(sizeof *operation);
    *operation = *given, operation->next = NULL;
    if (list->last) list->last->next = operation;
    else list->first = operation;
    list->last = operation;
}

void clear(Item *item) {
    if (item->kind == STREAM) {
        if (item->capture) drop(GRAPH, item->capture);
        drain(item);
    }
    while (item->first) {
        Operation *next = item->first->next;
        free(item->first);
        item->first = next;
    }
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1e3 + time.tv_nsec / 1e6;
}

/* Each value of an output is the mean of its image, plus an offset: what the engine of the tests computes. */
static void mean(const Operation *work, const char *images, float *output) {
    for (size_t row = 0; row < work->rows; row++) {
        double sum = 0;
        for (size_t i = row * work->size; i < (row + 1) * work->size; i++)
            sum += work->is_bytes ? ((const unsigned char *)images)[i] : ((const float *)images)[i];
        for (size_t i = 0; i < work->out_size; i++) output[row * work->out_size + i] = (float)(sum / work->size) + work->offset;
    }
}

static void run(const Operation *work) {
    if (work->kind == RECORD) {
        work->event->milliseconds = now(), work->event->is_recorded = 1;
        return;
    }
    int is_copy = work->kind == COPY;
    size_t in = is_copy ? work->size : work->rows * work->size * (work->is_bytes ? 1 : 4);
    size_t out = is_copy ? work->size : work->rows * work->out_size * 4;
    void *from = is_copy && work->is_upload ? (void *)(uintptr_t)work->from : on_gpu(work->from, in);
    void *to = is_copy && !work->is_upload ? (void *)(uintptr_t)work->to : on_gpu(work->to, out);
    if (is_copy && !is_pinned(work->is_upload ? from : to, work->size)) from = NULL;
    if (!from || !to) {
        fault("work on memory that is not allocated, or not pinned");
        lose();
    } else if (is_copy) memcpy(to, from, work->size);
    else mean(work, from, to);
}

void drain(Item *stream) {
    while (stream->first) {
        Operation *work = stream->first;
        if (!(stream->first = work->next)) stream->last = NULL;
        run(work);
        free(work);
    }
}

static void drain_blocking(void) {
    for (Item *item = items; item; item = item->next)
        if (item->kind == STREAM && !(item->flags & NON_BLOCKING)) drain(item);
}

void drain_all(void) {
    drain(&legacy);
    for (Item *item = items; item; item = item->next)
        if (item->kind == STREAM) drain(item);
}

int breaks_capture(void) {
    int found = 0;
    for (Item *item = items; item; item = item->next)
        if (item->kind == STREAM && item->capture &&
            (item->mode == GLOBAL || (item->mode == THREAD_LOCAL && item->thread == this_thread())))
            found = item->is_invalid = 1;
    return found;
}

/* Whether the legacy stream would have to wait for a stream that captures; the capture is then invalid. */
static int legacy_waits_for_capture(void) {
    int found = 0;
    for (Item *item = items; item; item = item->next)
        if (item->kind == STREAM && item->capture && !(item->flags & NON_BLOCKING)) found = item->is_invalid = 1;
    return found;
}

static Result put(Item *stream, const Operation *work) {
    if (!stream) return INVALID_HANDLE;
    if (stream->capture) return stream->is_invalid ? CAPTURE_INVALIDATED : (append(stream->capture, work), SUCCESS);
    if (stream == &legacy) {
        if (legacy_waits_for_capture()) return CAPTURE_IMPLICIT;
        drain_blocking();
    } else if (!(stream->flags & NON_BLOCKING)) drain(&legacy);
    append(stream, work);
    return SUCCESS;
}

Result cuStreamCreate(Item **stream, unsigned flags) {
    ENTER(CONTEXT);
    (*stream = add(STREAM, 0))->flags = flags;
    return leave(SUCCESS);
}
Result cuStreamDestroy_v2(Item *stream) {
    ENTER(CONTEXT);
    return leave(drop(STREAM, stream));
}
Result cuStreamSynchronize(void *handle) {
    ENTER(CONTEXT);
    Item *stream = stream_of(handle);
    if (!stream) return leave(INVALID_HANDLE);
    if (stream->capture) return leave((stream->is_invalid = 1, CAPTURE_UNSUPPORTED));
    if (stream == &legacy && legacy_waits_for_capture()) return leave(CAPTURE_IMPLICIT);
    if (stream == &legacy) drain_blocking();
    drain(stream);
    return leave(state());
}
Result cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t size, void *stream) {
    ENTER(CONTEXT);
    Operation work = {.kind = COPY, .from = (uintptr_t)from, .to = to, .size = size, .is_upload = 1};
    return leave(put(stream_of(stream), &work));
}
Result cuMemcpyDtoHAsync_v2(void *to, Address from, size_t size, void *stream) {
    ENTER(CONTEXT);
    Operation work = {.kind = COPY, .from = from, .to = (uintptr_t)to, .size = size};
    return leave(put(stream_of(stream), &work));
}
Result host_cuda_mean(void *stream, Address images, int is_bytes, size_t rows, size_t size, Address output, size_t out_size,
                      float offset) {
    ENTER(CONTEXT);
    Operation work = {.kind = MEAN, .from = images, .to = output, .rows = rows, .size = size, .out_size = out_size,
                      .is_bytes = is_bytes, .offset = offset};
    return leave(put(stream_of(stream), &work));
}

Result cuStreamBeginCapture_v2(void *handle, int mode) {
    ENTER(CONTEXT);
    Item *stream = stream_of(handle);
    if (!stream || stream == &legacy) return leave(stream ? CAPTURE_UNSUPPORTED : INVALID_HANDLE);
    if (stream->capture) return leave(ILLEGAL_STATE);
    stream->capture = add(GRAPH, 0), stream->mode = mode, stream->is_invalid = 0, stream->thread = this_thread();
    return leave(SUCCESS);
}
Result cuStreamEndCapture(Item *handle, Item **graph) {
    ENTER(CONTEXT);
    *graph = NULL;
    Item *stream = find(STREAM, handle);
    if (!stream || !stream->capture) return leave(stream ? ILLEGAL_STATE : INVALID_HANDLE);
    if (stream->mode <= THREAD_LOCAL && stream->thread != this_thread()) return leave(WRONG_THREAD);
    Item *captured = stream->capture;
    stream->capture = NULL;
    if (stream->is_invalid) return leave((drop(GRAPH, captured), CAPTURE_INVALIDATED));
    *graph = captured;
    return leave(SUCCESS);
}
Result cuGraphInstantiateWithFlags(Item **executable, Item *graph, unsigned long long flags) {
    ENTER(CONTEXT);
    if (flags || !find(GRAPH, graph)) return leave(INVALID_VALUE);
    *executable = add(EXECUTABLE, 0);
    for (Operation *work = graph->first; work; work = work->next) append(*executable, work);
    return leave(SUCCESS);
}
Result cuGraphLaunch(Item *executable, void *handle) {
    ENTER(CONTEXT);
    Item *stream = stream_of(handle);
    if (!stream || !find(EXECUTABLE, executable)) return leave(INVALID_HANDLE);
    Result result = SUCCESS;
    for (Operation *work = executable->first; work && !result; work = work->next) result = put(stream, work);
    return leave(result);
}
Result cuGraphDestroy(Item *graph) {
    ENTER(CONTEXT);
    return leave(drop(GRAPH, graph));
}
Result cuGraphExecDestroy(Item *executable) {
    ENTER(CONTEXT);
    return leave(drop(EXECUTABLE, executable));
}

Result cuEventCreate(Item **event, unsigned flags) {
    ENTER(CONTEXT);
    (*event = add(EVENT, 0))->flags = flags;
    return leave(SUCCESS);
}
Result cuEventDestroy_v2(Item *event) {
    ENTER(CONTEXT);
    drain_all();
    return leave(drop(EVENT, event));
}
Result cuEventRecord(Item *event, void *handle) {
    ENTER(CONTEXT);
    Item *stream = stream_of(handle);
    if (!find(EVENT, event)) return leave(INVALID_HANDLE);
    event->stream = stream, event->is_recorded = 0, event->is_captured = stream && stream->capture;
    Operation work = {.kind = RECORD, .event = event};
    return leave(put(stream, &work));
}
Result cuEventSynchronize(Item *event) {
    ENTER(CONTEXT);
    if (!find(EVENT, event)) return leave(INVALID_HANDLE);
    if (event->is_captured) return leave(CAPTURED_EVENT);
    if (event->stream == &legacy || find(STREAM, event->stream)) drain(event->stream);
    return leave(SUCCESS);
}
Result cuEventElapsedTime_v2(float *milliseconds, Item *start, Item *end) {
    ENTER(CONTEXT);
    if (!find(EVENT, start) || !find(EVENT, end)) return leave(INVALID_HANDLE);
    if (start->is_captured || end->is_captured) return leave(CAPTURED_EVENT);
    if (!start->is_recorded || !end->is_recorded) return leave(NOT_READY);
    *milliseconds = (float)(end->milliseconds - start->milliseconds);
    return leave(SUCCESS);
}
Result cuEventElapsedTime(float *milliseconds, Item *start, Item *end) { return cuEventElapsedTime_v2(milliseconds, start, end); }
