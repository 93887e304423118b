/* What the two files of the C program share. */
#ifndef C_PROGRAM_H
#define C_PROGRAM_H

#include "halfbyte/halfbyte.h"

enum { VOCAB = 97, HIDDEN = 48, POSITIONS = 600, ENCODER_HIDDEN = 32 };

/* A path inside the folder that make_models has filled; valid until the next call. */
const char* path_of(const char* name);
void check(int good, const char* what, const char* file, int line);
/* The call failed with this status, and its text holds `part`. */
void check_error(int found, int expected, const char* part, const char* what, const char* file, int line);

#define CHECK(condition) check((condition) != 0, #condition, __FILE__, __LINE__)
#define OK(call) check_error((call), HB_OK, "", #call, __FILE__, __LINE__)
#define FAILS(call, status, part) check_error((call), (status), (part), #call, __FILE__, __LINE__)

/* c_errors.c */
void test_null_pointers(hb_model* model);
void test_opening_errors(void);
void test_call_errors(hb_model* model);
void test_generation_errors(hb_model* model);
void test_encoder_errors(hb_model* encoder);

#endif
